// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every file whose path a user names is opened here: no open waits for a peer, none makes a
//! terminal the controlling one, none is inherited by a child.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a configuration may take to arrive through a FIFO.
const PATIENCE: Duration = Duration::from_secs(5);

/// Without O_NONBLOCK, open(2) waits on a FIFO without a peer; without O_NOCTTY, a terminal would
/// become the controlling one.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

fn kind(file: &File) -> io::Result<&'static str> {
    let kind = file.metadata()?.file_type();
    Ok(match () {
        () if kind.is_file() => "a file",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () => "a device",
    })
}

/// Opens a regular file to read: kernel, initrd.
///
/// # Errors
///
/// The error of open(2), or that it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path)?;
    match kind(&file)? {
        "a file" => Ok(file),
        other => Err(io::Error::other(format!("{other}, not a regular file"))),
    }
}

/// Opens a disk image: a regular file or a block device.
///
/// # Errors
///
/// The error of open(2), or that it is neither a regular file nor a block device.
pub fn open_disk(path: &Path, read_only: bool) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(!read_only).custom_flags(FLAGS).open(path)?;
    match kind(&file)? {
        "a file" | "a block device" => Ok(file),
        other => Err(io::Error::other(format!("{other}, not a regular file or a block device"))),
    }
}

/// Opens a file or FIFO for lines of text, and creates a file where nothing is.
///
/// Clients create FIFOs and may not read them yet: opened for reading too, the call neither fails
/// nor waits.
///
/// # Errors
///
/// What open(2) says.
pub fn open_lines(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).custom_flags(FLAGS).open(path)
}

/// Reads a short text as a whole: a configuration, from a file or through a FIFO.
///
/// # Errors
///
/// The host's error; if it is longer than `limit` bytes; if a FIFO's writer sends nothing for five
/// seconds.
pub fn read_text(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path)?;
    if kind(&file)? == "a directory" {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&file)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if text.len() > limit {
            return Err(io::Error::other(format!("longer than {limit} bytes")));
        }
    }
}

fn wait(file: &File) -> io::Result<()> {
    let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(0) => Err(io::Error::other("no data within 5 seconds")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file whose size a guest controls, within a limit: when full, it is renamed to `PATH.1`,
/// replacing the previous one, and a new file is started. FIFOs and devices have no limit.
#[derive(Debug)]
pub struct LimitedFile {
    file: File,
    path: PathBuf,
    limit: Option<u64>,
    size: u64,
}

impl LimitedFile {
    /// Opens `path` to append to; the file and its predecessor have `limit` bytes at most each.
    ///
    /// # Errors
    ///
    /// As [`open_lines`].
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open_lines(path)?;
        let metadata = file.metadata()?;
        let limit = metadata.is_file().then_some(limit);
        Ok(Self { file, path: path.to_owned(), limit, size: metadata.size() })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        if std::fs::rename(&self.path, older).is_ok() {
            self.file = open_lines(&self.path)?;
        } else {
            // The directory is not writable: truncate the file instead.
            self.file.set_len(0)?;
        }
        self.size = 0;
        Ok(())
    }
}

impl Write for LimitedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.limit.is_some_and(|limit| self.size > 0 && self.size + bytes.len() as u64 > limit) {
            self.rotate()?;
        }
        loop {
            match self.file.write(bytes) {
                Ok(length) => {
                    self.size += length as u64;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                    // On failure the next write says why.
                    let _ = poll(&mut fds, None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        path
    }

    #[test]
    fn a_fifo_without_a_peer_holds_up_no_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let error = open_regular(&path).unwrap_err();
        assert_eq!(error.to_string(), "a FIFO, not a regular file");
        open_lines(&path).unwrap();
        LimitedFile::open(&path, 10).unwrap();
        assert_eq!(read_text(&path, 100).unwrap(), b"", "no writer: nothing to read");
    }

    #[test]
    fn text_comes_whole_and_within_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert_eq!(read_text(&path, 5000).unwrap().len(), 5000);
        assert!(read_text(&path, 4999).is_err());
        assert!(read_text(dir.path(), 10).is_err());
    }

    #[test]
    fn text_comes_through_a_fifo_whose_writer_is_slow() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        // Opened first, so that the reader does not find it without a writer.
        let mut writer = open_lines(&path).unwrap();
        let reader = std::thread::spawn(move || read_text(&path, 100));
        writer.write_all(b"te").unwrap();
        writer.write_all(b"xt").unwrap();
        // Data is lost once no end is open: the reader must read it first.
        while rustix::io::ioctl_fionread(&writer).unwrap() > 0 {
            std::thread::yield_now();
        }
        drop(writer);
        assert_eq!(reader.join().unwrap().unwrap(), b"text");
    }

    #[test]
    fn a_file_that_a_guest_fills_keeps_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let mut file = LimitedFile::open(&path, 100).unwrap();
        for number in 0..50u8 {
            file.write_all(&[number; 10]).unwrap();
        }
        drop(file);
        let newer = std::fs::read(&path).unwrap();
        let older = std::fs::read(dir.path().join("console.1")).unwrap();
        assert!((1..=100).contains(&newer.len()) && older.len() == 100);
        assert_eq!(newer.last(), Some(&49), "the newest is kept");
        // Existing contents count.
        let mut file = LimitedFile::open(&path, 100).unwrap();
        file.write_all(&[9; 90]).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= 100);
    }
}
