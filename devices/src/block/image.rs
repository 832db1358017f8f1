// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk's image: a file or block device of raw sectors, or a qcow2 image.
//!
//! An image is locked while it is open (open file description locks, fcntl(2)): any number of
//! readers, or one writer. Programs that take no such lock are not excluded.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate,
    StorageOpenOptions,
};

use super::protocol::{ID_LEN, SECTOR};

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Another process, or another disk of this guest, has it open.
    #[error(
        "the image is locked: another guest {}; stop that one or attach both read-only",
        if *.read_only { "writes to it" } else { "uses it" }
    )]
    Locked {
        /// Whether this disk is read-only.
        read_only: bool,
    },
    /// A folder, a socket, a terminal.
    #[error("not a regular file or a block device")]
    NotADisk,
    /// The header is not one of qcow2, or the image is damaged.
    #[error("cannot use it as a qcow2 image: {0}")]
    Qcow2(io::Error),
    /// A system call failed.
    #[error("cannot use it as a disk: {0}")]
    Host(#[from] io::Error),
}

/// An open, locked disk image.
#[derive(Debug)]
pub struct DiskImage {
    pub(super) contents: Contents,
    bytes: u64,
    read_only: bool,
    id: [u8; ID_LEN],
    place: FileIdentity,
}

/// What the sectors are read from.
pub(super) enum Contents {
    Raw(Arc<File>),
    Qcow2(Box<FormatAccess<imago::file::File>>),
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw(_) => "Raw",
            Self::Qcow2(_) => "Qcow2",
        })
    }
}

/// Which file it is, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl DiskImage {
    /// `file` as a disk of raw sectors. It must have been opened for writing unless `read_only`.
    ///
    /// A size that is no multiple of 512 bytes is rounded down, as Firecracker does.
    ///
    /// # Errors
    ///
    /// [`ImageError::Locked`] and [`ImageError::NotADisk`], or the host's error.
    pub fn raw(file: File, read_only: bool) -> Result<Self, ImageError> {
        size(&file)?;
        lock(&file, read_only)?;
        Self::locked_raw(Arc::new(file), read_only)
    }

    /// As [`raw`](Self::raw), for a file that this process has locked already.
    pub(super) fn locked_raw(file: Arc<File>, read_only: bool) -> Result<Self, ImageError> {
        let bytes = size(&file)?;
        if !bytes.is_multiple_of(SECTOR) {
            tracing::warn!(bytes, "ignoring the last partial sector of the image");
        }
        let (id, place) = (id(&file)?, FileIdentity::of(&file)?);
        Ok(Self { contents: Contents::Raw(file), bytes, read_only, id, place })
    }

    /// `file` as a qcow2 image. `path` is its name, by which relative names in its header are
    /// resolved. Other files that the header names (a backing image, a data file) are opened only
    /// with `follow`, as an image from an untrusted source could name any file of the host.
    ///
    /// # Errors
    ///
    /// As [`raw`](Self::raw), and [`ImageError::Qcow2`].
    pub fn qcow2(
        file: File,
        path: &Path,
        read_only: bool,
        follow: bool,
    ) -> Result<Self, ImageError> {
        size(&file)?;
        lock(&file, read_only)?;
        let (id, place) = (id(&file)?, FileIdentity::of(&file)?);
        let options = StorageOpenOptions::new().filename(path).write(!read_only);
        let storage = imago::file::File::from_open_file(file, options)?;
        let builder = Qcow2::<imago::file::File>::builder(storage).write(!read_only);
        let opened = match follow {
            true => builder.open(PermissiveImplicitOpenGate::default()),
            false => builder.open(DenyImplicitOpenGate::default()),
        };
        let access = FormatAccess::new(opened.map_err(ImageError::Qcow2)?);
        let bytes = access.size();
        Ok(Self { contents: Contents::Qcow2(Box::new(access)), bytes, read_only, id, place })
    }

    /// Whole sectors that it has.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Whether it must not be written.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The reply to GET_ID: derived from the host's file, padded with zeroes.
    pub(super) fn id(&self) -> [u8; ID_LEN] {
        self.id
    }

    pub(super) fn place(&self) -> FileIdentity {
        self.place
    }

    /// The file, if it is raw.
    pub(super) fn raw_file(&self) -> Option<&Arc<File>> {
        match &self.contents {
            Contents::Raw(file) => Some(file),
            Contents::Qcow2(_) => None,
        }
    }
}

/// Bytes of a file or block device.
fn size(mut file: &File) -> Result<u64, ImageError> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ImageError::NotADisk);
    }
    Ok(io::Seek::seek(&mut file, io::SeekFrom::End(0))?)
}

/// Firecracker's choice: device, special device and inode as decimal numbers.
fn id(file: &File) -> io::Result<[u8; ID_LEN]> {
    let metadata = file.metadata()?;
    let text = format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino());
    let mut id = [0; ID_LEN];
    let len = text.len().min(ID_LEN);
    id[..len].copy_from_slice(&text.as_bytes()[..len]);
    Ok(id)
}

/// Locks all of the file until its last descriptor is closed.
fn lock(file: &File, read_only: bool) -> Result<(), ImageError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK } as libc::c_short;
    let whole = libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: F_OFD_SETLK reads a `flock` structure, which lives during the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(ImageError::Locked { read_only }),
        // File systems without locks (some of FUSE): there is nothing to hold on to.
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => {
            tracing::warn!(%error, "cannot lock the image against a second writer");
            Ok(())
        }
        _ => Err(error.into()),
    }
}
