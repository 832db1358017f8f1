// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's Unix sockets: the one that programs connect to, those of connections, and news of all
//! of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Events of sockets that are taken at a time.
const EVENTS: usize = 64;
/// The listening socket among the events.
const LISTENER: u64 = 0;

/// An event of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct SocketNews {
    /// The socket, by the number that [`HostSockets::watch`] gave.
    pub(super) id: u64,
    /// There is data to read, or end of file.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    /// What can be read has an end.
    pub(super) ends: bool,
    /// The program has closed it.
    pub(super) gone: bool,
}

/// All sockets of a device.
#[derive(Debug)]
pub(super) struct HostSockets {
    listener: UnixListener,
    path: PathBuf,
    epoll: OwnedFd,
    next_id: u64,
    /// Connections may wait in the listening socket.
    accepting: bool,
}

/// What every stream is watched for.
const WATCHED: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);

impl HostSockets {
    /// Watches `listener`, which is bound to `path`.
    pub(super) fn new(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { listener, path, epoll, next_id: LISTENER + 1, accepting: true })
    }

    /// Readable when a socket has news.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Looks for connections even without an event.
    pub(super) fn look_again(&mut self) {
        self.accepting = true;
    }

    /// The next program that has connected, if one has.
    pub(super) fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        while self.accepting {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.accepting = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return Err(error);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Watches `stream` until it is closed; the number of its news. There is no news of room to write
    /// unless [`watch_room`](Self::watch_room) asks for it.
    pub(super) fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        epoll::add(&self.epoll, stream, epoll::EventData::new_u64(id), WATCHED)?;
        Ok(id)
    }

    /// Turns news of room to write to `stream`, under its number `id`, on or off. Room that is there
    /// already is news too. Leave it off while there is nothing to write: each read by the stream's
    /// program would be news.
    pub(super) fn watch_room(&self, stream: &UnixStream, id: u64, on: bool) -> io::Result<()> {
        let flags = if on { WATCHED | epoll::EventFlags::OUT } else { WATCHED };
        Ok(epoll::modify(&self.epoll, stream, epoll::EventData::new_u64(id), flags)?)
    }

    /// Puts news of sockets into `news`, in place of what is there; true if there may be more, of
    /// which no event will tell.
    pub(super) fn poll(&mut self, news: &mut Vec<SocketNews>) -> io::Result<bool> {
        news.clear();
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; EVENTS];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = loop {
            match epoll::wait(&self.epoll, &mut events[..], Some(&at_once)) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        for event in &events[..count] {
            let (id, flags) = (event.data.u64(), event.flags);
            if id == LISTENER {
                self.accepting = true;
                continue;
            }
            let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            let ends = gone || flags.intersects(epoll::EventFlags::RDHUP);
            let readable = ends || flags.intersects(epoll::EventFlags::IN);
            let writable = flags.intersects(epoll::EventFlags::OUT);
            news.push(SocketNews { id, readable, writable, ends, gone });
        }
        Ok(count == EVENTS)
    }

    /// Connects to the program that serves `port` of the host: the one at the socket's path with
    /// the port appended.
    pub(super) fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.as_os_str().as_bytes().to_vec();
        path.extend(format!("_{port}").bytes());
        // Longer than a socket's path can be: there is no such program.
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Done at once, or refused: Unix sockets do not connect in the background (connect(2)).
        rustix::net::connect(&socket, &address)?;
        Ok(socket.into())
    }
}
