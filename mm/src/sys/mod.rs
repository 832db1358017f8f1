// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls, thinly: the only place outside the frame pool with `unsafe` in it.
//!
//! * [`mapping`]: a stretch of address space that this process owns, and advice on it
//! * [`pagemap`]: what is resident there, by PAGEMAP_SCAN or by /proc/self/pagemap
//! * [`memory_refusal`]: what the kernel's error numbers mean
//! * [`thread`]: signals of threads of our own
//! * [`userfault`]: faults on absent memory, answered by this process
//!
//! **Aliasing.** No reference or slice to mapped memory is ever made: a guest, the kernel or
//! another thread may write it at any time. It is read and written through vm-memory's
//! volatile accessors only. That is why taking pages away ([`mapping::Mapping::discard`]) is a safe
//! operation: there is no Rust reference that could observe it. The one exception is a
//! [`Region`](crate::frames::Region) of the frame pool, which keeps its mapping to itself and never
//! takes pages away from it.

pub mod mapping;
pub mod memory_refusal;
pub mod pagemap;
pub mod thread;
pub mod userfault;
