// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor to read from without waiting, though others have it too.
//!
//! Standard input is shared: with the shell, or with another monitor in the same pipeline. A byte
//! that has woken both goes to one, and the other's read(2) would wait for the next. O_NONBLOCK is
//! no way out, as it would be set for everybody. So this process opens pipes and terminals again
//! for itself, and sockets are read by a call that does not wait.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use rustix::net::RecvFlags;

/// The device that makes a new pseudo-terminal each time that it is opened.
const PTMX: (u32, u32) = (5, 2);

/// What is read from.
#[derive(Debug)]
pub struct SharedInput {
    shared: BorrowedFd<'static>,
    /// The same, opened for this process alone.
    own: Option<File>,
    is_socket: bool,
}

impl SharedInput {
    /// Reads from `shared`.
    pub fn new(shared: BorrowedFd<'static>) -> Self {
        let kind = shared.try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
        let Ok(metadata) = kind else { return Self { shared, own: None, is_socket: false } };
        let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = metadata.file_type();
        let reopens = kind.is_fifo() || (kind.is_char_device() && device != PTMX);
        // Without /proc, or without the right to open another user's terminal, it is read as it is.
        let own = reopens.then(|| reopen(shared).ok()).flatten();
        Self { shared, own, is_socket: kind.is_socket() }
    }

    /// Reads what is there; an error of the kind `WouldBlock` where nothing is.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_socket {
            return Ok(rustix::net::recv(self.shared, bytes, RecvFlags::DONTWAIT)?.0);
        }
        Ok(rustix::io::read(self.as_fd(), bytes)?)
    }
}

impl AsFd for SharedInput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or(self.shared, AsFd::as_fd)
    }
}

fn reopen(shared: BorrowedFd<'_>) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;

    /// For the rest of the test process.
    fn leaked(fd: impl Into<OwnedFd>) -> BorrowedFd<'static> {
        let kept: &'static OwnedFd = Box::leak(Box::new(fd.into()));
        kept.as_fd()
    }

    fn nothing_is_waited_for(shared: BorrowedFd<'static>) {
        let input = SharedInput::new(shared);
        let error = input.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let flags = fcntl_getfl(shared).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "the others would not wait either");
    }

    #[test]
    fn reading_what_another_has_taken_does_not_wait() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let reader = leaked(reader);
        nothing_is_waited_for(reader);
        rustix::io::write(&writer, b"typed").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(SharedInput::new(reader).read(&mut bytes).unwrap(), 5);
        nothing_is_waited_for(reader);
        drop(writer);
        assert_eq!(SharedInput::new(reader).read(&mut bytes).unwrap(), 0);

        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = leaked(ours);
        nothing_is_waited_for(ours);
        rustix::io::write(&theirs, b"typed").unwrap();
        assert_eq!(SharedInput::new(ours).read(&mut bytes).unwrap(), 5);
    }

    #[test]
    fn a_terminal_is_not_waited_for_either() {
        let pty = crate::host::terminal::Pty::open().unwrap();
        nothing_is_waited_for(leaked(pty.theirs));
        drop(pty.ours);
    }

    #[test]
    fn a_file_is_read_from_where_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "already;next").unwrap();
        let file = File::open(&path).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(8)).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(SharedInput::new(leaked(file)).read(&mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"next");
    }
}
