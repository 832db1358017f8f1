// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of the window, without a host.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::gpu::{HostRegion, HostWindow};

/// Bytes of the host-visible window.
pub const WINDOW: u64 = 1 << 20;

/// A window that only records mappings; it panics if the contract is broken.
#[derive(Clone, Default)]
pub struct FakeWindow(Arc<Mutex<BTreeMap<u64, Arc<dyn HostRegion>>>>);

impl FakeWindow {
    /// The memory mapped at `offset`.
    pub fn at(&self, offset: u64) -> Option<Arc<dyn HostRegion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&offset).cloned()
    }
}

impl HostWindow for FakeWindow {
    fn size(&self) -> u64 {
        WINDOW
    }

    fn map(&mut self, offset: u64, memory: Arc<dyn HostRegion>) -> io::Result<()> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = |memory: &Arc<dyn HostRegion>| memory.bytes().len() as u64;
        let end = offset + len(&memory);
        assert!(offset.is_multiple_of(4096) && end <= WINDOW, "{offset:#x} leaves the window");
        for (start, other) in mapped.iter() {
            assert!(end <= *start || start + len(other) <= offset, "{offset:#x} is taken");
        }
        mapped.insert(offset, memory);
        Ok(())
    }

    fn unmap(&mut self, offset: u64) -> io::Result<()> {
        let mut mapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(mapped.remove(&offset).is_some(), "nothing is mapped at {offset:#x}");
        Ok(())
    }
}
