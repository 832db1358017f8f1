// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue of a TAP interface (Linux, Documentation/networking/tuntap.rst).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::protocol::{HEADER_LEN, feature};
use crate::virtio::IoVecs;

/// Where TAP interfaces are opened.
const DEVICE: &str = "/dev/net/tun";
/// [`HEADER_LEN`], as the kernel wants it.
const HEADER: libc::c_int = 12;
const _: () = assert!(HEADER as usize == HEADER_LEN);

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no TAP driver, or the process may not use it.
    #[error("cannot open {DEVICE}: {0}; load the module `tun` or grant access to the device")]
    Open(io::Error),
    /// A name that no interface can have.
    #[error("invalid interface name `{0}`: give 1 to 15 bytes without `/`")]
    Name(String),
    /// The interface cannot be attached.
    #[error("cannot attach to TAP {name}: {cause}{}", advice(cause))]
    Attach {
        /// The interface.
        name: String,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Advice for an error.
fn advice(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EBUSY) => "; another process uses it",
        Some(libc::EPERM) => "; create it with `ip tuntap add NAME mode tap user USER`",
        Some(libc::EINVAL) => {
            "; it is not a TAP, or was created with different flags (`multi_queue`)"
        }
        _ => "",
    }
}

/// A TAP interface, or any other source of frames that transfers one frame with its virtio header
/// per call.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// False for a datagram socket, which has no settings.
    is_tap: bool,
}

impl Tap {
    /// Attaches `queues` queues to the TAP `name`, which is created if the process may do that.
    ///
    /// # Errors
    ///
    /// See [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
            return Err(TapError::Name(name.to_owned()));
        }
        (0..queues).map(|_| Self::open_queue(name, queues > 1)).collect()
    }

    fn open_queue(name: &str, several: bool) -> Result<Self, TapError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty())
            .map_err(|error| TapError::Open(error.into()))?;
        let tap = Self { fd, is_tap: true };
        let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let mode = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let attach = || {
            tap.interface_ioctl(libc::TUNSETIFF, name, mode)?;
            let header = HEADER;
            // SAFETY: TUNSETVNETHDRSZ reads an `int`, which lives during the call.
            ioctl(unsafe {
                libc::ioctl(tap.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header)
            })
        };
        match attach() {
            Ok(()) => Ok(tap),
            Err(cause) => Err(TapError::Attach { name: name.to_owned(), cause }),
        }
    }

    /// A socket on which each datagram is a frame with its virtio header: for tests, and for
    /// switches in user space.
    pub fn from_socket(fd: OwnedFd) -> Self {
        Self { fd, is_tap: false }
    }

    /// Sets the kernel's offloads by the features that the driver accepted.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.is_tap {
            return Ok(());
        }
        let offloads = [
            (feature::GUEST_CSUM, libc::TUN_F_CSUM),
            (feature::GUEST_TSO4, libc::TUN_F_TSO4),
            (feature::GUEST_TSO6, libc::TUN_F_TSO6),
            (feature::GUEST_ECN, libc::TUN_F_TSO_ECN),
        ];
        let wanted = offloads.iter().filter(|(bit, _)| features & bit != 0);
        let flags = wanted.fold(0, |flags, (_, offload)| flags | offload);
        // SAFETY: TUNSETOFFLOAD takes a number.
        let result = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
        };
        ioctl(result)
    }

    /// Enables or disables reception on this queue.
    pub(super) fn enable(&self, on: bool) -> io::Result<()> {
        if !self.is_tap {
            return Ok(());
        }
        let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        match self.interface_ioctl(libc::TUNSETQUEUE, "", flag) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Reads the next frame; returns its length.
    pub(super) fn read(&self, into: &IoVecs) -> io::Result<usize> {
        let vectors = into.as_slice();
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: the vectors are guest memory, mapped and writable for as long as `into` lives,
        // to which Rust has no reference.
        let result = unsafe { libc::readv(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Sends one frame.
    pub(super) fn write(&self, from: &IoVecs) -> io::Result<usize> {
        let vectors = from.as_slice();
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: as in `read`; the kernel only reads here.
        let result = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    fn interface_ioctl(&self, request: libc::Ioctl, name: &str, flags: i32) -> io::Result<()> {
        // SAFETY: `ifreq` is a C structure, for which zeroes are a valid value.
        let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        interface.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: both requests take an `ifreq`, which lives during the call.
        ioctl(unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw mut interface) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ioctl(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
