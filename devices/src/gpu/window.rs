// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mappings in the host-visible window. Every range is checked before the host maps it, and every
//! mapping is charged to a budget, as each takes a memory slot of the hypervisor.

use std::collections::BTreeMap;
use std::sync::Arc;

use mm::budget::{Budget, Charge};

use super::host_memory::{Held, HostRegion, HostWindow, WindowError};
use super::resource_backing::PAGE_SIZE;

/// One mapping.
struct WindowMapping {
    /// Its length in bytes.
    len: u64,
    _charge: Charge,
}

/// The window and its mappings.
pub(super) struct Window {
    host: Option<Box<dyn HostWindow>>,
    budget: Arc<Budget>,
    /// By offset.
    mapped: BTreeMap<u64, WindowMapping>,
    mapped_bytes: u64,
}

impl Window {
    /// A window over the monitor's `HostWindow`, with mappings charged to `budget`; without one,
    /// nothing can be mapped.
    pub(super) fn new(host: Option<Box<dyn HostWindow>>, budget: Arc<Budget>) -> Self {
        Self { host, budget, mapped: BTreeMap::new(), mapped_bytes: 0 }
    }

    /// Bytes mapped.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Maps all of `memory` at `offset`.
    pub(super) fn map(&mut self, offset: u64, memory: &Arc<Held>) -> Result<(), WindowError> {
        let host = self.host.as_mut().ok_or(WindowError::None)?;
        let len = memory.len();
        let end = offset.checked_add(len).ok_or(WindowError::Outside)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(WindowError::Unaligned);
        }
        if end > host.size() {
            return Err(WindowError::Outside);
        }
        let before = self.mapped.range(..end).next_back();
        if before.is_some_and(|(start, mapping)| start + mapping.len > offset) {
            return Err(WindowError::Overlap);
        }
        let charge = self.budget.try_charge(1)?;
        host.map(offset, Arc::clone(memory) as Arc<dyn HostRegion>).map_err(|error| {
            tracing::warn!(offset, len, %error, "cannot map host memory into the guest");
            WindowError::Host
        })?;
        self.mapped.insert(offset, WindowMapping { len, _charge: charge });
        self.mapped_bytes += len;
        Ok(())
    }

    /// Unmaps the mapping at `offset`.
    ///
    /// If the host fails to unmap, the range stays in use: nothing may be mapped over it.
    pub(super) fn unmap(&mut self, offset: u64) -> Result<(), WindowError> {
        let host = self.host.as_mut().ok_or(WindowError::None)?;
        if !self.mapped.contains_key(&offset) {
            return Err(WindowError::Outside);
        }
        host.unmap(offset).map_err(|error| {
            tracing::warn!(offset, %error, "cannot unmap host memory from the guest");
            WindowError::Host
        })?;
        if let Some(mapping) = self.mapped.remove(&offset) {
            self.mapped_bytes -= mapping.len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::gpu::host_memory::{AnonymousMemory, HostPool};

    /// Maps nothing and detects violations of the contract.
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
        /// For any guest requests, mappings are aligned, inside the window and disjoint (the
        /// recorder asserts this), failures are justified, and nothing is left over.
        #[test]
        fn mappings_never_overlap(asked in prop::collection::vec((0..20u64, 1..6u64, any::<bool>()), 1..40)) {
            let mut pool = HostPool::new(Box::new(AnonymousMemory), Budget::bytes("test", 1 << 20));
            let mut window = Window::new(Some(Box::<Recorder>::default()), Budget::count("maps", 16));
            let mut taken: HashMap<u64, u64> = HashMap::new();
            for (page, pages, map) in asked {
                let offset = page * PAGE_SIZE;
                if map {
                    let memory = pool.take(pages * PAGE_SIZE).unwrap();
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
                prop_assert_eq!(pool.used(), window.mapped_bytes());
            }
        }
    }

    #[test]
    fn mappings_beyond_the_budget_are_refused_before_the_host_is_asked() {
        let mut pool = HostPool::new(Box::new(AnonymousMemory), Budget::bytes("test", 1 << 20));
        let host = Some(Box::<Recorder>::default() as Box<dyn HostWindow>);
        let mut window = Window::new(host, Budget::count("maps", 2));
        let memory = pool.take(PAGE_SIZE).unwrap();
        window.map(0, &memory).unwrap();
        window.map(PAGE_SIZE, &memory).unwrap();
        let refused = window.map(2 * PAGE_SIZE, &memory);
        assert!(matches!(refused, Err(WindowError::Budget(_))), "{refused:?}");
        window.unmap(0).unwrap();
        window.map(2 * PAGE_SIZE, &memory).unwrap();
    }

    #[test]
    fn bad_places_are_refused_by_name() {
        let mut pool = HostPool::new(Box::new(AnonymousMemory), Budget::bytes("test", 1 << 20));
        let memory = pool.take(PAGE_SIZE).unwrap();
        let mut window = Window::new(Some(Box::<Recorder>::default()), Budget::count("maps", 16));
        assert_eq!(window.map(1, &memory), Err(WindowError::Unaligned));
        assert_eq!(window.map(16 * PAGE_SIZE, &memory), Err(WindowError::Outside));
        assert_eq!(window.map(u64::MAX - 4095, &memory), Err(WindowError::Outside));
        assert_eq!(
            Window::new(None, Budget::count("maps", 16)).map(0, &memory),
            Err(WindowError::None)
        );
    }
}
