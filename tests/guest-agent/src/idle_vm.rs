// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine in the outer machine that never runs.
//!
//! KVM patches its own code when the first vCPU comes and when the last one goes, and again when the
//! first has its APIC off and the last has switched it on (`preempt_notifier_key`,
//! `apic_sw_disabled`). QEMU, which emulates each CPU in a thread of its own, sometimes runs a
//! breakpoint of such a patch after it was taken out again, and the outer kernel panics. While this
//! vCPU is there, whose APIC is off, KVM has nothing to patch when guests come and go.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// linux/kvm.h.
const KVM_CREATE_VM: libc::Ioctl = 0xae01;
const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
const KVM_CREATE_IRQCHIP: libc::Ioctl = 0xae60;

/// Lives until it is dropped.
pub(crate) struct IdleVm {
    _kvm: File,
    _vm: OwnedFd,
    _vcpu: OwnedFd,
}

impl IdleVm {
    /// Makes one; fails where there is no KVM.
    pub(crate) fn new() -> io::Result<Self> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
        let vm = create(&kvm, KVM_CREATE_VM)?;
        // SAFETY: the request takes no argument.
        let done = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CREATE_IRQCHIP, 0) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let vcpu = create(&vm, KVM_CREATE_VCPU)?;
        Ok(Self { _kvm: kvm, _vm: vm, _vcpu: vcpu })
    }
}

/// A request whose argument is 0 and that gives a new descriptor.
fn create(of: &impl AsRawFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: both requests take a number, here 0: the machine's type, the vCPU's id.
    let fd = unsafe { libc::ioctl(of.as_raw_fd(), request, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
