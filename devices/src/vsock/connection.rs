// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One stream: a Unix socket on the host's side, packets on the guest's.
//!
//! ```text
//!  from the host:  Requested ── RESPONSE ──▶ Established        any ── reset ──▶ gone
//!  from the guest: Established (RESPONSE is due)
//! ```
//!
//! Each direction ends separately: end of file on the socket becomes a shutdown to the guest, and a
//! shutdown from the guest closes that direction of the socket once everything is written. When the
//! host's program has closed the socket, only the record stays until the guest resets the
//! connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bitflags::bitflags;
use mm::units::SaturatingInto;

use super::credit::Credit;
use super::host_sockets::SocketNews;
use super::protocol::{Op, shutdown};
use crate::virtio::IoVecs;

bitflags! {
    /// Pending packets to the guest other than data.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Due: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const SHUTDOWN = 4;
        const CREDIT_UPDATE = 8;
        const CREDIT_REQUEST = 16;
    }
}

/// The next packet to the guest on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextPacket {
    /// A packet without data, with these flags.
    Packet(Op, u32),
    /// Data, as much as the guest has room for.
    Data(u32),
    /// Nothing at present.
    Nothing,
}

/// Action for the owner of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// The connection is closed: send a reset to the guest.
    Reset,
}

/// One stream.
#[derive(Debug)]
pub(super) struct VsockConnection {
    /// `None` once the host's program has closed it.
    stream: Option<UnixStream>,
    established: bool,
    pub(super) credit: Credit,
    /// Bytes from the guest that the socket did not accept immediately.
    buffer: VecDeque<u8>,
    readable: bool,
    /// Behind what can be read may be an end of which there is no further event: it is read until
    /// the socket says that there is nothing.
    to_the_end: bool,
    /// It may be read, but the guest had no room for more.
    starved: bool,
    /// The socket has no peer.
    hung_up: bool,
    due: Due,
    /// Directions that the host has ended, as in the shutdown to the guest.
    host_ended: u32,
    /// Directions that the guest has ended.
    guest_ended: u32,
    /// The write side of the socket is shut down.
    told_host: bool,
    /// The socket is watched for room, as there is held data.
    watches_room: bool,
    /// It is in the owner's list of connections with pending packets.
    pub(super) listed: bool,
}

impl VsockConnection {
    /// A stream that the host's program has asked for.
    pub(super) fn to_guest(stream: UnixStream) -> Self {
        // The event of bytes behind the greeting, or of an end, was taken with the greeting.
        Self { readable: true, to_the_end: true, ..Self::new(stream, Due::REQUEST) }
    }

    /// A stream that the guest has asked for, with its credit.
    pub(super) fn from_guest(stream: UnixStream, credit: Credit) -> Self {
        let new = Self::new(stream, Due::RESPONSE);
        Self { credit, established: true, ..new }
    }

    fn new(stream: UnixStream, due: Due) -> Self {
        Self {
            stream: Some(stream),
            established: false,
            credit: Credit::default(),
            buffer: VecDeque::new(),
            readable: false,
            to_the_end: false,
            starved: false,
            hung_up: false,
            due,
            host_ended: 0,
            guest_ended: 0,
            told_host: false,
            watches_room: false,
            listed: false,
        }
    }

    /// Bytes held for the host's program.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The socket and whether it has to be watched for room from now on, if that has changed.
    pub(super) fn change_of_watch(&mut self) -> Option<(&UnixStream, bool)> {
        let held = !self.buffer.is_empty();
        let changed = std::mem::replace(&mut self.watches_room, held) != held;
        self.stream.as_ref().filter(|_| changed).map(|stream| (stream, held))
    }

    /// The host's program has closed the socket, and the guest was notified.
    pub(super) fn lingers(&self) -> bool {
        self.stream.is_none() && self.due.is_empty()
    }

    /// Whether the guest has heard of it.
    pub(super) fn is_known(&self) -> bool {
        !self.due.contains(Due::REQUEST)
    }

    /// The socket has news.
    pub(super) fn on_socket(&mut self, news: &SocketNews) -> Fate {
        self.readable |= news.readable;
        self.to_the_end |= news.ends;
        self.hung_up |= news.gone;
        if news.gone && !self.established {
            return Fate::Reset;
        }
        if news.writable { self.flush() } else { Fate::Lives }
    }

    /// The guest has accepted; `greeting` is sent to the host's program first.
    pub(super) fn accepted(&mut self, greeting: &[u8]) -> Fate {
        if self.established || self.due.contains(Due::REQUEST) {
            return Fate::Reset;
        }
        self.established = true;
        let Some(stream) = &self.stream else { return Fate::Reset };
        // The first bytes on a new socket: they fit.
        match send_slices(stream, &[IoSlice::new(greeting)]) {
            Ok(len) if len == greeting.len() => Fate::Lives,
            _ => Fate::Reset,
        }
    }

    /// The guest asks how much room there is.
    pub(super) fn tell_credit(&mut self) {
        self.due |= Due::CREDIT_UPDATE;
    }

    /// The guest ends directions.
    pub(super) fn guest_ends(&mut self, flags: u32) -> Fate {
        self.guest_ended |= flags & shutdown::BOTH;
        self.finish(Ok(()))
    }

    /// Writes data from the guest: as much as the socket accepts now; the rest is held.
    pub(super) fn write(&mut self, data: &IoVecs) -> Fate {
        let len = data.len();
        let fits = u32::try_from(len).is_ok_and(|len| self.credit.receive(len));
        if !self.established || self.guest_ended & shutdown::SEND != 0 || !fits {
            return Fate::Reset;
        }
        let Some(stream) = &self.stream else {
            // The reader has closed it; the guest was notified.
            self.forward(len);
            return Fate::Lives;
        };
        let mut written = 0;
        if self.buffer.is_empty() {
            written = match send(stream, data) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return self.finish(Err(error)),
            };
            self.forward(written);
        }
        if written < len {
            let mut rest = vec![0; len - written];
            data.read(written, &mut rest);
            self.buffer.extend(rest);
        }
        Fate::Lives
    }

    /// Writes held data, now that the socket accepts more.
    fn flush(&mut self) -> Fate {
        let result = self.write_buffer();
        self.finish(result)
    }

    /// Writes as much of the buffer as the socket accepts.
    fn write_buffer(&mut self) -> io::Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        let mut total = 0;
        while !self.buffer.is_empty() {
            let (front, back) = self.buffer.as_slices();
            match send_slices(stream, &[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(written) => {
                    self.buffer.drain(..written);
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.forward(total);
        Ok(())
    }

    fn forward(&mut self, len: usize) {
        self.credit.forward(len.saturating_u32());
        if self.credit.worth_telling() {
            self.due |= Due::CREDIT_UPDATE;
        }
    }

    /// Performs pending shutdowns once everything is written.
    fn finish(&mut self, written: io::Result<()>) -> Fate {
        if written.is_err() {
            return Fate::Reset;
        }
        let Some(stream) = &self.stream else {
            return if self.guest_ended == shutdown::BOTH { Fate::Reset } else { Fate::Lives };
        };
        if !self.buffer.is_empty() {
            return Fate::Lives;
        }
        if self.guest_ended == shutdown::BOTH {
            return Fate::Reset;
        }
        // Once: each shutdown of a socket is an event of that socket too, and would lead here again.
        if self.guest_ended & shutdown::SEND != 0 && !self.told_host {
            self.told_host = true;
            // It fails only if the peer has closed the socket, which is a separate event.
            let _ = stream.shutdown(Shutdown::Write);
        }
        Fate::Lives
    }

    /// The next packet to the guest.
    pub(super) fn next(&mut self) -> NextPacket {
        if self.due.contains(Due::REQUEST) {
            return NextPacket::Packet(Op::Request, 0);
        }
        if self.due.contains(Due::RESPONSE) {
            return NextPacket::Packet(Op::Response, 0);
        }
        let receives = self.guest_ended & shutdown::RECEIVE == 0;
        if self.established && self.readable && receives && self.stream.is_some() {
            match self.credit.guest_room() {
                0 if !self.starved => {
                    self.starved = true;
                    self.due |= Due::CREDIT_REQUEST;
                }
                0 => {}
                room => return NextPacket::Data(room),
            }
        }
        if self.due.contains(Due::SHUTDOWN) {
            return NextPacket::Packet(Op::Shutdown, self.host_ended);
        }
        if self.due.contains(Due::CREDIT_UPDATE) {
            return NextPacket::Packet(Op::CreditUpdate, 0);
        }
        if self.due.contains(Due::CREDIT_REQUEST) {
            return NextPacket::Packet(Op::CreditRequest, 0);
        }
        NextPacket::Nothing
    }

    /// A packet was sent to the guest.
    pub(super) fn sent(&mut self, op: Op) {
        self.due -= match op {
            Op::Request => Due::REQUEST,
            Op::Response => Due::RESPONSE,
            Op::Shutdown => Due::SHUTDOWN,
            Op::CreditRequest => Due::CREDIT_REQUEST,
            _ => Due::empty(),
        };
        // Every packet carries the credit.
        self.due -= Due::CREDIT_UPDATE;
    }

    /// The guest has told its credit.
    pub(super) fn heard(&mut self, buffer: u32, taken: u32) {
        self.credit.update(buffer, taken);
        // Asked again if there is still no room.
        self.starved &= self.credit.guest_room() == 0 && self.due.contains(Due::CREDIT_REQUEST);
    }

    /// Reads data for the guest into `vectors`; 0 without data now, or at end of file.
    pub(super) fn read(&mut self, vectors: &IoVecs) -> io::Result<usize> {
        let Some(stream) = &self.stream else { return Ok(0) };
        loop {
            match receive(stream, vectors) {
                Ok((0, _)) => {
                    self.readable = false;
                    self.host_ends();
                    return Ok(0);
                }
                Ok((len, emptied)) => {
                    // What comes later is an event of its own.
                    self.readable &= !emptied || self.to_the_end;
                    self.credit.send(len.saturating_u32());
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    (self.readable, self.to_the_end) = (false, false);
                    return Ok(0);
                }
                Err(error) => {
                    self.hung_up = true;
                    self.host_ends();
                    return Err(error);
                }
            }
        }
    }

    /// Everything that the host's program sent has been read.
    fn host_ends(&mut self) {
        let ended = if self.hung_up { shutdown::BOTH } else { shutdown::SEND };
        if self.host_ended != ended {
            self.host_ended = ended;
            self.due |= Due::SHUTDOWN;
        }
        if self.hung_up {
            self.stream = None;
            self.buffer = VecDeque::new();
            self.readable = false;
        }
    }
}

/// Sends guest memory; a closed peer raises no signal.
fn send(stream: &UnixStream, vectors: &IoVecs) -> io::Result<usize> {
    let vectors = vectors.as_slice();
    // SAFETY: `msghdr` is a C structure, for which zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the vectors are guest memory that is mapped for as long as `vectors` lives; the
    // kernel only reads them.
    let result = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn send_slices(stream: &UnixStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
    let mut control = rustix::net::SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(stream, slices, &mut control, flags)?)
}

/// Receives into guest memory: the bytes, and whether the socket has no more at present.
fn receive(stream: &UnixStream, vectors: &IoVecs) -> io::Result<(usize, bool)> {
    let room = vectors.len();
    let vectors = vectors.as_slice();
    // SAFETY: `msghdr` is a C structure, for which zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len();
    // SAFETY: the vectors are guest memory, mapped and writable for as long as `vectors` lives, to
    // which Rust has no reference.
    let result = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    // A program that passes descriptors along, which are dropped here, ends a read early.
    Ok((len, len < room && message.msg_flags & libc::MSG_CTRUNC == 0))
}
