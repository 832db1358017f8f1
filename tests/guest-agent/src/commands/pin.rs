// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages pinned for as long as the guest likes, in the way that programs do it which have devices
//! read and write their memory: as buffers registered with io_uring.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null};

use super::reason;
use crate::console::Answer;
use crate::region::PAGE;

/// Bytes of the kernel's `struct io_uring_params`.
const PARAMS_BYTES: usize = 120;
/// Operations of io_uring_register(2).
const REGISTER_BUFFERS: libc::c_uint = 0;
const UNREGISTER_BUFFERS: libc::c_uint = 1;

/// The pages that are pinned, by the name and the page that they were pinned by.
#[derive(Default)]
pub(crate) struct Pins(BTreeMap<(String, usize), OwnedFd>);

impl Pins {
    /// `pin NAME PAGE`: the page at `address` stays where it is until `unpin`.
    pub(crate) fn pin(&mut self, name: &str, page: usize, address: NonNull<u64>) -> Answer {
        let key = (name.to_owned(), page);
        if self.0.contains_key(&key) {
            return Err(format!("page {page} of {name} is pinned already"));
        }
        let ring = new_ring().map_err(|e| reason("io_uring")(&e))?;
        let buffer = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: PAGE };
        register(&ring, REGISTER_BUFFERS, Some(&buffer)).map_err(|e| reason("pinning")(&e))?;
        self.0.insert(key, ring);
        Ok(vec![])
    }

    /// `unpin NAME PAGE`.
    pub(crate) fn unpin(&mut self, name: &str, page: usize) -> Answer {
        let ring = self.0.remove(&(name.to_owned(), page));
        let ring = ring.ok_or_else(|| format!("page {page} of {name} is not pinned"))?;
        // Closing alone would do it some time later.
        register(&ring, UNREGISTER_BUFFERS, None).map_err(|e| reason("unpinning")(&e))?;
        Ok(vec![])
    }
}

/// A ring without submissions.
fn new_ring() -> io::Result<OwnedFd> {
    let mut params = [0_u64; PARAMS_BYTES / size_of::<u64>()];
    // SAFETY: the kernel reads and writes PARAMS_BYTES at the pointer, which are ours.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register(
    ring: &OwnedFd,
    operation: libc::c_uint,
    buffer: Option<&libc::iovec>,
) -> io::Result<()> {
    let ring = ring.as_raw_fd();
    let (buffers, count) = buffer.map_or((null(), 0), |buffer| (std::ptr::from_ref(buffer), 1));
    // SAFETY: the kernel reads `count` entries at `buffers`, which is one or none. It takes
    // references to the pages that they name, and neither reads nor writes those pages.
    let done =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, buffers, count) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
