// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is mapped where in the host-visible window; every place is checked before the host is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backing::PAGE_SIZE;
use super::host_memory::{Held, HostRegion, HostWindow, WindowError};

/// The window and its mappings.
pub(super) struct Window {
    host: Option<Box<dyn HostWindow>>,
    /// Offset of each mapping to its length.
    mapped: BTreeMap<u64, u64>,
}

impl Window {
    /// A window over what the monitor gives; `None` maps nothing ever.
    pub(super) fn new(host: Option<Box<dyn HostWindow>>) -> Self {
        Self { host, mapped: BTreeMap::new() }
    }

    /// Bytes mapped.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.mapped.values().sum()
    }

    /// Maps all of `memory` at `offset`.
    pub(super) fn map(&mut self, offset: u64, memory: &Arc<Held>) -> Result<(), WindowError> {
        let host = self.host.as_mut().ok_or(WindowError::None)?;
        let len = memory.charge();
        let end = offset.checked_add(len).ok_or(WindowError::Outside)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(WindowError::Unaligned);
        }
        if end > host.size() {
            return Err(WindowError::Outside);
        }
        let before = self.mapped.range(..end).next_back();
        if before.is_some_and(|(start, len)| start + len > offset) {
            return Err(WindowError::Overlap);
        }
        host.map(offset, Arc::clone(memory) as Arc<dyn HostRegion>).map_err(|error| {
            tracing::warn!(offset, len, %error, "host memory could not be mapped");
            WindowError::Host
        })?;
        self.mapped.insert(offset, len);
        Ok(())
    }

    /// Unmaps what [`Window::map`] put at `offset`.
    ///
    /// Where the host refuses, the place stays taken: nothing else may be mapped over it.
    pub(super) fn unmap(&mut self, offset: u64) -> Result<(), WindowError> {
        let host = self.host.as_mut().ok_or(WindowError::None)?;
        if !self.mapped.contains_key(&offset) {
            return Err(WindowError::Outside);
        }
        host.unmap(offset).map_err(|error| {
            tracing::warn!(offset, %error, "host memory could not be unmapped");
            WindowError::Host
        })?;
        self.mapped.remove(&offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::gpu::host_memory::{AnonymousMemory, Budget};

    /// Maps into nothing, and notices what the contract forbids.
    #[derive(Default)]
    struct Recorder(HashMap<u64, Arc<dyn HostRegion>>);

    impl HostWindow for Recorder {
        fn size(&self) -> u64 {
            16 * PAGE_SIZE
        }

        fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> std::io::Result<()> {
            let end = offset + memory.bytes().len() as u64;
            assert!(end <= self.size());
            for (start, other) in &self.0 {
                assert!(end <= *start || start + other.bytes().len() as u64 <= offset);
            }
            self.0.insert(offset, memory);
            Ok(())
        }

        fn unmap(&mut self, offset: u64) -> std::io::Result<()> {
            self.0.remove(&offset).map(drop).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }
    }

    proptest! {
        /// Whatever a guest asks for, mappings are aligned, inside and apart (the recorder
        /// asserts), a page is refused only for cause, and nothing is left over.
        #[test]
        fn mappings_never_overlap(asked in prop::collection::vec((0..20u64, 1..6u64, any::<bool>()), 1..40)) {
            let mut budget = Budget::new(Box::new(AnonymousMemory), 1 << 20);
            let mut window = Window::new(Some(Box::<Recorder>::default()));
            let mut taken: HashMap<u64, u64> = HashMap::new();
            for (page, pages, map) in asked {
                let offset = page * PAGE_SIZE;
                if map {
                    let memory = budget.take(pages * PAGE_SIZE).unwrap();
                    let free = page + pages <= 16
                        && taken.iter().all(|(at, n)| page + pages <= *at || at + n <= page);
                    prop_assert_eq!(window.map(offset, &memory).is_ok(), free);
                    if free {
                        taken.insert(page, pages);
                    }
                } else {
                    prop_assert_eq!(window.unmap(offset).is_ok(), taken.remove(&page).is_some());
                }
                prop_assert_eq!(window.mapped_bytes(), taken.values().sum::<u64>() * PAGE_SIZE);
                prop_assert_eq!(budget.used(), window.mapped_bytes());
            }
        }
    }

    #[test]
    fn bad_places_are_refused_by_name() {
        let mut budget = Budget::new(Box::new(AnonymousMemory), 1 << 20);
        let memory = budget.take(PAGE_SIZE).unwrap();
        let mut window = Window::new(Some(Box::<Recorder>::default()));
        assert_eq!(window.map(1, &memory), Err(WindowError::Unaligned));
        assert_eq!(window.map(16 * PAGE_SIZE, &memory), Err(WindowError::Outside));
        assert_eq!(window.map(u64::MAX - 4095, &memory), Err(WindowError::Outside));
        assert_eq!(Window::new(None).map(0, &memory), Err(WindowError::None));
    }
}
