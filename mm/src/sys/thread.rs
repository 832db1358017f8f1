// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads of our own.

/// Blocks all signals for the calling thread, so that none interrupts it or is handled on it.
///
/// A pending signal keeps the thread's page fault in the kernel from waiting: the fault is reported
/// again and again until it is resolved.
pub fn block_signals() {
    // SAFETY: all zeroes make a `sigset_t`.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a `sigset_t`.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: as above; the former mask is not asked for.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    debug_assert_eq!(failed, 0, "a full set of signals is always accepted");
}
