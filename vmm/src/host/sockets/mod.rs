// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listening Unix sockets: created with mode 0600, replacing a stale one, and removed only if still
//! owned by this process.
//!
//! No step has a race between check and use. A new socket gets its name once it listens, by a rename
//! that fails if the name exists: between bind(2) and listen(2) it would refuse clients, and look
//! stale. A stale one is exchanged with the new one atomically, and if the removed one is not stale,
//! the exchange is undone. A lock on the directory serializes this between monitors.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, renameat_with};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Longest path of a socket, in bytes: `sun_path` less the terminating zero (unix(7)).
pub const MAX_PATH: usize = 107;

/// How often the folder's lock is tried, and how long between two tries.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// An empty path would make a socket without a name.
    #[error("empty path: give the path of a socket")]
    NoPath,
    /// It does not fit in an address.
    #[error("{}: the path has {len} bytes, the limit for a socket is {MAX_PATH}; choose a shorter \
             one", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Another process answers there.
    #[error("{}: in use by a running instance; choose another path", .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{}: exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The host refused.
    #[error("{}: {cause}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    /// Accepts connections; not blocking.
    pub socket: UnixListener,
    /// Its name, which is removed when this value is dropped.
    pub file: SocketFile,
}

/// The name of a socket in the file system; removed on drop if it still is that socket's.
#[derive(Debug)]
pub struct SocketFile {
    name: SocketName,
    keep: bool,
}

/// Where a socket of this process is, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SocketName {
    path: PathBuf,
    identity: SocketInode,
}

/// The sockets that [`remove_all`] removes.
static NAMES: Mutex<Vec<SocketName>> = Mutex::new(Vec::new());

/// Removes all sockets of this process that are not kept. For an exit without destructors; does
/// not wait for a thread that is just making or removing one, since that thread may hang.
pub fn remove_all() {
    if let Ok(names) = NAMES.try_lock() {
        names.iter().for_each(SocketName::remove);
    }
}

/// Device and inode.
type SocketInode = (u64, u64);

fn identity(path: &Path) -> io::Result<SocketInode> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listener {
    /// Listens at `path`, with mode 0600. A socket there without a listener is replaced.
    ///
    /// # Errors
    ///
    /// If a process listens there, the name is in use by something else, or the host fails.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().is_empty() {
            return Err(SocketError::NoPath);
        }
        let len = path.as_os_str().len();
        if len > MAX_PATH {
            return Err(SocketError::TooLong { path: path.to_owned(), len });
        }
        let failed = |cause| SocketError::Host { path: path.to_owned(), cause };
        let bound = match take_name(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => replace_dead(path)?,
            other => other.map_err(failed)?,
        };
        let socket = UnixListener::from(bound);
        let identity = identity(path).map_err(failed)?;
        let name = SocketName { path: path.to_owned(), identity };
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        Ok(Self { socket, file: SocketFile { name, keep: false } })
    }
}

/// A socket that listens at `path`; `AddrInUse` if the name is taken.
fn take_name(path: &Path) -> io::Result<OwnedFd> {
    let (aside, socket) = match bind_beside(path) {
        // The other name does not fit in an address.
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => return bind(path),
        other => other?,
    };
    let renamed = renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE);
    if renamed.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    match renamed {
        Ok(()) => Ok(socket),
        Err(Errno::EXIST) => Err(io::ErrorKind::AddrInUse.into()),
        // The file system has no such rename.
        Err(Errno::INVAL) => bind(path),
        Err(error) => Err(error.into()),
    }
}

/// A socket in the folder of `path`, at a name that no other uses, and that name.
fn bind_beside(path: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    loop {
        let aside = beside(path);
        match bind(&aside) {
            // A monitor of this process number was killed there.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return Ok((aside, bound?)),
        }
    }
}

/// A socket at the free name `path`. The mode is set before there is a name, so no umask matters.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the name the mode of the socket's own inode, less the umask.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let listening = rustix::net::listen(&socket, BACKLOG);
    if let Err(error) = listening {
        let _ = std::fs::remove_file(path);
        return Err(error.into());
    }
    Ok(socket)
}

/// Replaces the socket at `path` by a new one, if it has no listener.
fn replace_dead(path: &Path) -> Result<OwnedFd, SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |cause| SocketError::Host { path: path.to_owned(), cause };
    let _lock = lock_folder(path).map_err(failed)?;
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    let dead = (metadata.dev(), metadata.ino());
    match call(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // A full backlog, no permission, or an answer: there is a listener.
        _ => return Err(SocketError::InUse(path.to_owned())),
    }
    let (aside, socket) = bind_beside(path).map_err(failed)?;
    let exchange = || renameat_with(CWD, &aside, CWD, path, RenameFlags::EXCHANGE);
    let outcome = match exchange() {
        Ok(()) if identity(&aside).is_ok_and(|found| found == dead) => Ok(socket),
        Ok(()) => {
            // Another process was faster: its socket stays.
            let back = exchange();
            back.map_err(|error| failed(error.into())).and(Err(SocketError::InUse(path.to_owned())))
        }
        Err(error) => Err(failed(error.into())),
    };
    // The stale one, or ours if it was not used.
    let _ = std::fs::remove_file(&aside);
    outcome
}

/// Connects to the socket at `path` and hangs up. Does not wait: connecting to a listener whose
/// backlog is full would block until it accepts, and it may be a stopped process.
fn call(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?)
}

/// Locks the folder of `path` until the descriptor is closed.
fn lock_folder(path: &Path) -> io::Result<OwnedFd> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    for _ in 0..LOCK_TRIES {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => std::thread::sleep(LOCK_PAUSE),
            other => return Ok(other.map(|()| folder)?),
        }
    }
    Err(io::Error::other("its directory is locked by another process"))
}

/// A name in the same folder that no other socket of this process uses.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".b{}-{number}", std::process::id()))
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// Leaves the file where it is, as Firecracker does.
    pub fn keep(&mut self) {
        self.keep = true;
        self.unlist();
    }

    fn unlist(&self) {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|name| *name != self.name);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.unlist();
        if !self.keep {
            self.name.remove();
        }
    }
}

impl SocketName {
    /// Removes the file, if it still is this socket's.
    fn remove(&self) {
        let ours = |path: &Path| identity(path).is_ok_and(|found| found == self.identity);
        if !ours(&self.path) {
            return;
        }
        // Moved aside atomically, so that the checked socket is the one removed.
        let aside = beside(&self.path);
        let flags = RenameFlags::NOREPLACE;
        if renameat_with(CWD, &self.path, CWD, &aside, flags).is_err() {
            return;
        }
        if ours(&aside) {
            let _ = std::fs::remove_file(&aside);
        } else {
            let _ = renameat_with(CWD, &aside, CWD, &self.path, flags);
        }
    }
}
