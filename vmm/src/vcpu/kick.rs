// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes a vCPU thread leave KVM_RUN, without a race.
//!
//! A signal alone is lost if it comes just before KVM_RUN. So the handler, which runs on the vCPU's
//! own thread, also sets `kvm_run.immediate_exit`: the next KVM_RUN returns at once. The thread
//! clears it before it checks for a command, and the kicking thread stores the command before the
//! kick.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    // Constant and without a destructor, so a signal handler may use it: no lazy set-up behind it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null only while a `Kickable` of this very thread lives, and for that long
        // the kvm_run page it points into stays mapped. Volatile: the interrupted code may be
        // about to read or write the same byte.
        unsafe { flag.write_volatile(1) };
    }
}

/// The real-time signal that kicks are sent by.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler, once per process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install =
        || register_signal_handler(kick_signal(), on_kick).map_err(kvm_ioctls::Error::errno);
    INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)
}

/// Kicks a vCPU's thread.
pub(super) fn kick(thread: &JoinHandle<()>) {
    // Fails only if the thread has ended, and then it is where it should be.
    let _ = thread.kill(kick_signal());
}

/// While it lives, kicks reach the vCPU that it was made for, on the thread that made it.
pub(super) struct Kickable {
    // Bound to its thread.
    _not_send: PhantomData<*mut u8>,
}

impl Kickable {
    /// Lets kicks to the current thread reach `vcpu`.
    ///
    /// # Safety
    ///
    /// `vcpu` must outlive the value (it may move: the page it maps does not).
    pub(super) unsafe fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { _not_send: PhantomData }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
