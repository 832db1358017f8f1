// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of a device as a page of memory, which the hypervisor may let the guest read without
//! an exit. Each interrupt of a driver begins with such a read.
//!
//! Three registers change while the driver runs and live here only: interrupt status, device status
//! and configuration generation. The others are copied here when they change.

use std::sync::atomic::{AtomicU32, Ordering};

use super::mmio::register;

/// Words of a page, which is as large as a device's window.
const WORDS: usize = 4096 / 4;
/// Where configuration space begins, in words, and how much of it is copied: no device has more.
const CONFIG: usize = register::CONFIG as usize / 4;
const CONFIG_BYTES: usize = 256;

/// All readable registers, at their offsets. A hypervisor may map it read-only.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct RegisterPage {
    words: [AtomicU32; WORDS],
}

impl RegisterPage {
    /// A page of zeroes.
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { words: [const { AtomicU32::new(0) }; WORDS] })
    }

    /// The register at `offset`, a multiple of 4 within the page.
    pub(super) fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[offset as usize / 4 % WORDS]
    }

    /// What the guest reads at `offset`.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn read(&self, offset: u64) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Replaces the copy of configuration space.
    pub(super) fn set_config(&self, config: &[u8]) {
        for (word, bytes) in self.words[CONFIG..].iter().zip(config.chunks(4)) {
            let mut value = [0; 4];
            value[..bytes.len()].copy_from_slice(bytes);
            // Memory has the bytes in their order.
            word.store(u32::from_ne_bytes(value), Ordering::Release);
        }
    }

    /// Room for a copy of configuration space.
    pub(super) fn config_room() -> [u8; CONFIG_BYTES] {
        [0; CONFIG_BYTES]
    }
}
