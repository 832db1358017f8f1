// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests and answers of one connection, one after the other.

use std::time::{Duration, Instant};

use mm::units::SaturatingInto;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::exchange::{Exchange, Service};
use crate::virtio::Deadline;

/// Time after which a connection on which nothing moves is reset.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 8 << 10;
/// Bytes of an answer that the guest has not acknowledged, at most.
const WINDOW: usize = 16 << 10;

/// A socket and the answer that is being sent on it.
#[derive(Debug)]
pub(super) struct ServiceConnection {
    socket: SocketHandle,
    /// Whether a guest has connected.
    open: bool,
    /// When something arrived or was sent last.
    moved: Instant,
    /// Bytes in the socket's buffers then.
    queued: (usize, usize),
    answer: Vec<u8>,
    sent: usize,
    close: bool,
}

/// What one turn did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Served {
    /// Answers begun.
    pub(super) answers: usize,
    /// Whether the deadline ended the turn.
    pub(super) unfinished: bool,
}

impl ServiceConnection {
    /// A socket in `sockets` that listens on `port`.
    pub(super) fn listen(sockets: &mut SocketSet<'static>, port: u16, now: Instant) -> Self {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(MAX_REQUEST), buffer(WINDOW));
        let patience = smoltcp::time::Duration::from_micros(PATIENCE.as_micros().saturating_u64());
        socket.set_timeout(Some(patience));
        // Neither the end of an answer nor that of a request waits for an acknowledgement.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // It fails for open sockets and port 0 only.
        let _ = socket.listen(port);
        Self {
            socket: sockets.add(socket),
            open: false,
            moved: now,
            queued: (0, 0),
            answer: Vec::new(),
            sent: 0,
            close: false,
        }
    }

    pub(super) fn handle(&self) -> SocketHandle {
        self.socket
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Notes that a guest has connected; whether that is new.
    pub(super) fn open(&mut self) -> bool {
        !std::mem::replace(&mut self.open, true)
    }

    /// Back to a socket that listens.
    pub(super) fn forget(&mut self) {
        self.open = false;
        self.answer.clear();
        self.sent = 0;
        self.close = false;
    }

    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// How long nothing has moved.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved)
    }

    /// Answers received requests as far as the window and the deadline allow.
    pub(super) fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        service: &mut dyn Service,
        now: Instant,
        deadline: &mut Deadline,
    ) -> Served {
        let served = self.turn(socket, service, now, deadline);
        let queued = (socket.recv_queue(), socket.send_queue());
        if !self.open || queued != self.queued || served.answers > 0 {
            self.moved = now;
            self.queued = queued;
        }
        served
    }

    fn turn(
        &mut self,
        socket: &mut Socket<'_>,
        service: &mut dyn Service,
        now: Instant,
        deadline: &mut Deadline,
    ) -> Served {
        let mut served = Served::default();
        loop {
            if !self.send(socket, deadline) {
                return served;
            }
            if self.close {
                // Further data from the guest is ignored.
                socket.close();
                return served;
            }
            if !socket.can_recv() {
                // The guest has closed its side: the service closes too.
                if socket.is_active() && socket.may_send() && !socket.may_recv() {
                    socket.close();
                }
                return served;
            }
            if deadline.passed() {
                served.unfinished = true;
                return served;
            }
            let mut received = vec![0; socket.recv_queue()];
            let len = socket.peek_slice(&mut received).unwrap_or(0);
            deadline.charge(Deadline::COMMAND + len as u64);
            // The guest has closed its side: an incomplete request stays incomplete.
            let full = len >= MAX_REQUEST || !may_receive_more(socket);
            match service.answer(&received[..len], full, now) {
                Exchange::Incomplete => return served,
                Exchange::Reply { consumed, bytes, close } => {
                    let mut request = vec![0; consumed.clamp(1, len.max(1))];
                    // They were there when they were looked at.
                    let _ = socket.recv_slice(&mut request);
                    deadline.charge(bytes.len() as u64);
                    self.answer = bytes;
                    self.sent = 0;
                    self.close = close;
                    served.answers += 1;
                }
            }
        }
    }

    /// Sends the rest of the answer; returns whether all of it is in the socket's buffer.
    fn send(&mut self, socket: &mut Socket<'_>, deadline: &mut Deadline) -> bool {
        while self.sent < self.answer.len() {
            match socket.send_slice(&self.answer[self.sent..]) {
                Ok(0) => return false,
                Ok(sent) => {
                    self.sent += sent;
                    deadline.charge(sent as u64);
                }
                // The connection is over.
                Err(_) => self.sent = self.answer.len(),
            }
        }
        self.answer = Vec::new();
        self.sent = 0;
        true
    }
}

/// Whether bytes may arrive behind those in the buffer.
fn may_receive_more(socket: &Socket<'_>) -> bool {
    matches!(socket.state(), State::Established | State::FinWait1 | State::FinWait2)
}
