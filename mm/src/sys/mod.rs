// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Thin wrappers around system calls. Besides the frame pool, the only module with `unsafe`.
//!
//! * [`idle_work`]: work in CPU time that no other thread needs
//! * [`mapping`]: a stretch of address space that this process owns, and advice on it
//! * [`pagemap`]: what is resident there, by PAGEMAP_SCAN or by /proc/self/pagemap
//! * [`memory_refusal`]: what the kernel's error numbers mean
//! * [`thread`]: signals and CPU time of threads of our own
//! * [`userfault`]: faults on absent memory, answered by this process
//!
//! **Aliasing.** No reference or slice to mapped memory is made: a guest, the kernel or
//! another thread may write it at any time. It is read and written through vm-memory's volatile
//! accessors only. Discarding pages ([`mapping::Mapping::discard`]) is therefore safe: no Rust
//! reference can observe it. The one exception is a [`Region`](crate::frames::Region) of the frame
//! pool, which keeps its mapping private and never discards pages that are in use.

pub mod idle_work;
pub mod mapping;
pub mod memory_refusal;
pub mod pagemap;
pub mod thread;
pub mod userfault;
