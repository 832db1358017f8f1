// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers and structures of include/uapi/linux/userfaultfd.h.

use crate::units::HostRange;

pub(super) const UFFD_API: u64 = 0xaa;
pub(super) const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
pub(super) const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
pub(super) const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
pub(super) const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
pub(super) const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03_u32 as libc::Ioctl;
pub(super) const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;
pub(super) const UFFDIO_MOVE: libc::Ioctl = 0xc028_aa05_u32 as libc::Ioctl;
pub(super) const UFFDIO_POISON: libc::Ioctl = 0xc020_aa08_u32 as libc::Ioctl;
/// `_IO(0xAA, 0x00)` on /dev/userfaultfd: a new descriptor, with the flags as argument.
pub(super) const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;

pub(super) const REGISTER_MODE_MISSING: u64 = 1;
pub(super) const MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
pub(super) const FEATURE_POISON: u64 = 1 << 14;
pub(super) const FEATURE_MOVE: u64 = 1 << 16;
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const PAGEFAULT_FLAG_WRITE: u64 = 1;

#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
pub(super) struct UffdRegister {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_copy` and `struct uffdio_move` have the same shape.
#[repr(C)]
pub(super) struct UffdTransfer {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) done: i64,
}

/// `struct uffdio_zeropage` and `struct uffdio_poison` have the same shape.
#[repr(C)]
pub(super) struct UffdFill {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) done: i64,
}

/// `struct uffd_msg`, as far as it concerns page faults.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct UffdMessage {
    pub(super) event: u8,
    pub(super) reserved: [u8; 7],
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) thread: u64,
}

const _: () = assert!(size_of::<UffdMessage>() == 32);
const _: () = assert!(size_of::<UffdTransfer>() == 40 && size_of::<UffdFill>() == 32);

impl From<HostRange> for Range {
    fn from(range: HostRange) -> Self {
        Self { start: range.addr() as u64, len: range.len() as u64 }
    }
}
