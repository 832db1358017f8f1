// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! userfaultfd(2): faults on absent memory of this process, answered by this process.
//!
//! What the calls do is in Documentation/admin-guide/mm/userfaultfd.rst. UFFDIO_MOVE is of Linux 6.8,
//! UFFDIO_POISON of 6.6.
//!
//! - `abi.rs`: numbers and structures of include/uapi/linux/userfaultfd.h

mod abi;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;

use crate::units::{HostRange, PAGE_BYTES, SaturatingInto, usize_from};
use abi::*;

/// Events read in one call.
const EVENTS: usize = 64;

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// Faults of the kernel itself (KVM, io_uring) must be handled too, which requires privileges.
    #[error(
        "userfaultfd is not permitted: run as root, make /dev/userfaultfd accessible, or set \
         vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted,
    /// The kernel is built without it, or a filter forbids it.
    #[error("userfaultfd is not available on this host: {0}")]
    Unavailable(#[source] io::Error),
    /// The kernel is older than 6.8.
    #[error("userfaultfd cannot move pages on this kernel: Linux 6.8 or later is needed")]
    NoMove,
}

/// A transfer that stopped before its end.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {range} stopped after {done} bytes: {source}")]
pub struct Stopped {
    /// The call.
    pub what: &'static str,
    /// The destination.
    pub range: HostRange,
    /// Bytes done before.
    pub done: usize,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl Stopped {
    /// Whether the kernel asks to try again.
    pub fn is_transient(&self) -> bool {
        self.source.kind() == io::ErrorKind::WouldBlock
    }

    /// Whether a page is at the destination already.
    pub fn is_present(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }
}

/// A fault that waits for its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Address of the page.
    pub page: usize,
    /// Whether it is to be written.
    pub write: bool,
}

/// A userfaultfd of this process, non-blocking.
///
/// When it is closed, the kernel drops all registrations and absent pages read as zero: keep it
/// open while any page's contents are elsewhere.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    features: u64,
}

impl Userfault {
    /// Opens one that also handles faults of the kernel, through the system call or
    /// /dev/userfaultfd.
    ///
    /// Call it after the last exec: it belongs to the memory of the process that opens it.
    ///
    /// # Errors
    /// [`UserfaultError`].
    pub fn open() -> Result<Self, UserfaultError> {
        let fd = match syscall() {
            Ok(fd) => fd,
            Err(Errno::PERM) => device().map_err(|_| UserfaultError::NotPermitted)?,
            Err(error) => return Err(UserfaultError::Unavailable(error.into())),
        };
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        let mut this = Self { fd, features: 0 };
        // SAFETY: `Api` is the structure that the call expects.
        unsafe { this.call(UFFDIO_API, &mut api) }.map_err(UserfaultError::Unavailable)?;
        this.features = api.features;
        if this.features & FEATURE_MOVE == 0 {
            return Err(UserfaultError::NoMove);
        }
        Ok(this)
    }

    /// Has faults on absent pages of `range` reported. The pages that are there are not affected.
    ///
    /// # Errors
    /// The kernel's error; `ENOMEM` if the process has too many mappings.
    pub fn register(&self, range: HostRange) -> io::Result<()> {
        let mut arg = UffdRegister { range: range.into(), mode: REGISTER_MODE_MISSING, ioctls: 0 };
        // SAFETY: `Register` is the structure that the call expects; registering changes no page.
        unsafe { self.call(UFFDIO_REGISTER, &mut arg) }
    }

    /// Unregisters `range`: the kernel fills absent pages with zeroes again. Wakes waiting threads.
    ///
    /// # Errors
    /// The kernel's error; `ENOMEM` if the process has too many mappings.
    pub fn unregister(&self, range: HostRange) -> io::Result<()> {
        // SAFETY: `Range` is the structure that the call expects.
        unsafe { self.call(UFFDIO_UNREGISTER, &mut Range::from(range)) }
    }

    /// Wakes the threads that wait for a page of `range`, so that they retry.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(&self, range: HostRange) -> io::Result<()> {
        // SAFETY: `Range` is the structure that the call expects.
        unsafe { self.call(UFFDIO_WAKE, &mut Range::from(range)) }
    }

    /// Moves the pages at `src` to `dst`, which has none and is registered, without copying, and
    /// wakes waiting threads. A huge page stays huge. Pages that are absent at `src` are skipped if
    /// `holes` is set.
    ///
    /// # Errors
    /// [`Stopped`], with the bytes moved so far: `EAGAIN` to continue, `EBUSY` for a page that is
    /// pinned or shared, `EEXIST` for one that is at `dst`, `ENOENT` for a hole.
    ///
    /// # Panics
    /// If the ranges differ in length.
    ///
    /// # Safety
    /// Both ranges are mapped, of the same length and written by no other code; no Rust reference
    /// to either exists.
    pub unsafe fn move_pages(
        &self,
        dst: HostRange,
        src: HostRange,
        holes: bool,
    ) -> Result<(), Stopped> {
        assert_eq!(dst.len(), src.len(), "source and destination differ in length");
        let mode = if holes { MOVE_MODE_ALLOW_SRC_HOLES } else { 0 };
        // SAFETY: as promised by the caller.
        unsafe { self.transfer("move", UFFDIO_MOVE, dst, src, mode) }
    }

    /// Fills the absent pages at `dst`, which is registered, with copies of those at `src`, and
    /// wakes waiting threads.
    ///
    /// # Errors
    /// [`Stopped`]; `EEXIST` if a page is there.
    ///
    /// # Panics
    /// If the ranges differ in length.
    ///
    /// # Safety
    /// As for [`move_pages`](Self::move_pages).
    pub unsafe fn copy(&self, dst: HostRange, src: HostRange) -> Result<(), Stopped> {
        assert_eq!(dst.len(), src.len(), "source and destination differ in length");
        // SAFETY: as promised by the caller.
        unsafe { self.transfer("copy", UFFDIO_COPY, dst, src, 0) }
    }

    /// Fills the absent pages of `range`, which is registered, with zeroes, and wakes waiting
    /// threads.
    ///
    /// # Errors
    /// [`Stopped`]; `EEXIST` if a page is there.
    pub fn zero(&self, range: HostRange) -> Result<(), Stopped> {
        self.fill("zeroing", UFFDIO_ZEROPAGE, range)
    }

    /// Makes every further access to the absent pages of `range`, which is registered, fail: SIGBUS
    /// for a thread, `EHWPOISON` or `EFAULT` for KVM. For contents that are lost.
    ///
    /// # Errors
    /// [`Stopped`]; `EINVAL` on kernels before 6.6.
    pub fn poison(&self, range: HostRange) -> Result<(), Stopped> {
        if self.features & FEATURE_POISON == 0 {
            let source = Errno::INVAL.into();
            return Err(Stopped { what: "poisoning", range, done: 0, source });
        }
        self.fill("poisoning", UFFDIO_POISON, range)
    }

    /// Calls `found` for each pending fault; returns immediately without any.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn faults(&self, mut found: impl FnMut(PageFault)) -> io::Result<()> {
        let mut messages = [UffdMessage::default(); EVENTS];
        let room = size_of_val(&messages);
        // SAFETY: `messages` is `room` writable bytes, and any bytes make a `Message`.
        let read = unsafe {
            libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast::<libc::c_void>(), room)
        };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            let passing = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
            return if passing.contains(&error.kind()) { Ok(()) } else { Err(error) };
        };
        for message in &messages[..read / size_of::<UffdMessage>()] {
            if message.event == EVENT_PAGEFAULT {
                let page = message.address as usize & !(PAGE_BYTES - 1);
                found(PageFault { page, write: message.flags & PAGEFAULT_FLAG_WRITE != 0 });
            }
        }
        Ok(())
    }

    fn fill(
        &self,
        what: &'static str,
        request: libc::Ioctl,
        range: HostRange,
    ) -> Result<(), Stopped> {
        let mut arg = UffdFill { range: range.into(), mode: 0, done: 0 };
        // SAFETY: `Fill` is the structure that both calls expect; they fill absent pages only.
        let result = unsafe { self.call(request, &mut arg) };
        result.map_err(|source| stopped(what, range, arg.done, source))
    }

    /// # Safety
    /// As for [`move_pages`](Self::move_pages).
    unsafe fn transfer(
        &self,
        what: &'static str,
        request: libc::Ioctl,
        dst: HostRange,
        src: HostRange,
        mode: u64,
    ) -> Result<(), Stopped> {
        let (to, from) = (dst.addr() as u64, src.addr() as u64);
        let mut arg = UffdTransfer { dst: to, src: from, len: dst.len() as u64, mode, done: 0 };
        // SAFETY: `Transfer` is the structure that both calls expect; the ranges are the caller's
        // to change.
        let result = unsafe { self.call(request, &mut arg) };
        result.map_err(|source| stopped(what, dst, arg.done, source))
    }

    /// # Safety
    /// `arg` is the structure that `request` expects, and the requested operation is sound.
    unsafe fn call<T>(&self, request: libc::Ioctl, arg: &mut T) -> io::Result<()> {
        // SAFETY: as promised by the caller; `arg` lives until the call returns.
        let failed = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, std::ptr::from_mut(arg)) };
        if failed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn syscall() -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a new descriptor changes no memory.
    unsafe { rustix::mm::userfaultfd(flags) }
}

fn device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument is a number; a new descriptor changes no memory.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn stopped(what: &'static str, range: HostRange, done: i64, source: io::Error) -> Stopped {
    // Negative: the same error again.
    Stopped { what, range, done: usize_from(done.saturating_u64()), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mapping::{Mapping, MappingSource};
    use crate::units::BLOCK_BYTES;

    #[test]
    fn a_page_is_moved_with_its_contents() {
        let uffd = Userfault::open().expect("needs userfaultfd: run as root");
        let from = Mapping::new(MappingSource::Anonymous, BLOCK_BYTES, BLOCK_BYTES).unwrap();
        let to = Mapping::new(MappingSource::Anonymous, BLOCK_BYTES, BLOCK_BYTES).unwrap();
        from.populate(from.range()).unwrap();
        let word: *mut u64 = std::ptr::with_exposed_provenance_mut(from.range().addr() + 0x3000);
        // SAFETY: in the mapping, aligned, and known to this test alone.
        unsafe { word.write_volatile(42) };
        uffd.register(to.range()).unwrap();
        // SAFETY: both mappings are this test's, and no reference to them exists.
        unsafe { uffd.move_pages(to.range(), from.range(), false) }.unwrap();
        let word: *const u64 = std::ptr::with_exposed_provenance(to.range().addr() + 0x3000);
        // SAFETY: in the mapping and aligned.
        assert_eq!(unsafe { word.read_volatile() }, 42);
        // SAFETY: as above.
        let again = unsafe { uffd.move_pages(to.range(), from.range(), true) };
        // Nothing is left to be moved, and nothing was overwritten.
        assert!(again.is_ok() || again.unwrap_err().is_present());
        // SAFETY: in the mapping and aligned.
        assert_eq!(unsafe { word.read_volatile() }, 42);
    }

    /// A single thread may drop its privileges.
    #[test]
    fn without_the_privilege_the_error_says_what_to_do() {
        let refused = std::thread::spawn(|| {
            // SAFETY: changes the identity of this thread only, which ends with the closure.
            let dropped = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            (dropped == 0).then(Userfault::open)
        });
        let Some(refused) = refused.join().unwrap() else {
            eprintln!("not run: the thread cannot give up its privileges");
            return;
        };
        let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
        if allowed.is_ok_and(|text| text.trim() == "1") {
            return;
        }
        let error = refused.unwrap_err();
        assert!(matches!(error, UserfaultError::NotPermitted), "{error}");
        assert!(error.to_string().contains("vm.unprivileged_userfaultfd"));
    }
}
