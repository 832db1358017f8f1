// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket device from its driver's side, with real Unix sockets on the other.
//!
//! - `streams.rs`: connections in both directions, data, ends
//! - `credit.rs`: neither side receives more than it has room for
//! - `hostile.rs`: false packets, floods, and leaks

mod credit;
mod hostile;
mod streams;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{Op, PacketHeader, shutdown};
use super::*;
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{DeviceLock, GuestMemoryMmap, QueueHost};

const DRIVER: std::ops::Range<u64> = 0x1000..0x100_0000;
const CID: u64 = 3;
const RX: u16 = 0;
const TX: u16 = 1;
/// Entries of a queue, as Linux has them.
const QUEUE_SIZE: u16 = 256;
/// A receive buffer of the guest's, as Linux has them.
const BUFFER: u32 = 4096;
/// The guest's reported buffer space.
const ROOM: u32 = 64 << 10;

/// A receive buffer of the guest's.
struct Posted {
    chain: Vec<MockDescriptor>,
    /// Where its bytes are.
    pieces: Vec<(GuestAddress, u32)>,
}

/// A guest with the device, and the host's folder with its sockets.
struct Rig {
    driver: MockDriver,
    device: Arc<DeviceLock<Vsock>>,
    handle: VsockHandle,
    mem: Arc<GuestMemoryMmap>,
    posted: VecDeque<Posted>,
    /// How each receive buffer is cut, in bytes.
    cut: Vec<u32>,
    /// Where packets are sent from.
    outgoing: GuestAddress,
    path: PathBuf,
    _dir: TempDir,
}

/// A packet to the guest.
#[derive(Debug)]
struct Packet {
    header: PacketHeader,
    data: Vec<u8>,
}

impl Packet {
    fn op(&self) -> Op {
        self.header.op.get().into()
    }
}

impl Rig {
    fn new() -> Self {
        Self::with_buffers(&[BUFFER])
    }

    /// With receive buffers of pieces of these lengths.
    fn with_buffers(cut: &[u32]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let config = VsockConfig {
            guest_cid: CID,
            listener,
            max_connections: MAX_CONNECTIONS,
            path: path.clone(),
        };
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap());
        let device = Vsock::new(config).unwrap();
        let handle = device.handle();
        let device = Arc::new(DeviceLock::new(device));
        let driver = MockDriver::new(Arc::clone(&mem), device.clone(), DRIVER);
        let driver = driver.with_queue_size(QUEUE_SIZE);
        let mut rig = Self {
            driver,
            device,
            handle,
            mem,
            posted: VecDeque::new(),
            cut: cut.to_vec(),
            outgoing: GuestAddress(0),
            path,
            _dir: dir,
        };
        rig.probe();
        rig
    }

    fn probe(&mut self) {
        self.driver.probe(u64::MAX, 3);
        self.outgoing = self.driver.alloc(1 << 20);
        self.posted.clear();
        for _ in 0..32 {
            let pieces: Vec<_> =
                self.cut.iter().map(|len| (self.driver.alloc((*len).into()), *len)).collect();
            let chain: Vec<_> =
                pieces.iter().map(|(at, len)| MockDescriptor::writable(*at, *len)).collect();
            let chain = if chain.len() > 1 { vec![self.driver.put_table(&chain)] } else { chain };
            self.post(Posted { chain, pieces });
        }
    }

    fn post(&mut self, buffer: Posted) {
        self.driver.add(RX, &buffer.chain);
        self.posted.push_back(buffer);
    }

    /// The host's sockets have news.
    fn host_event(&mut self) {
        self.driver.transport().process_queue(RX);
        self.driver.run();
    }

    /// The next packet to the guest; its buffer is used again.
    fn packet(&mut self) -> Option<Packet> {
        let (_, len) = self.driver.used(RX)?;
        let buffer = self.posted.pop_front().unwrap();
        let mut bytes = Vec::new();
        for (at, len) in &buffer.pieces {
            let mut piece = vec![0; *len as usize];
            self.mem.read_slice(&mut piece, *at).unwrap();
            bytes.extend(piece);
        }
        bytes.truncate(len as usize);
        let header = PacketHeader::read_from_bytes(&bytes[..PacketHeader::LEN]).unwrap();
        assert_eq!(header.dst_cid.get(), CID);
        assert_eq!(header.src_cid.get(), 2);
        assert_eq!(header.len.get() as usize, bytes.len() - PacketHeader::LEN);
        self.post(buffer);
        self.driver.notify(RX);
        self.driver.run();
        Some(Packet { header, data: bytes[PacketHeader::LEN..].to_vec() })
    }

    fn expect(&mut self, op: Op) -> Packet {
        let packet = self.packet().unwrap_or_else(|| panic!("no packet, but {op:?} expected"));
        assert_eq!(packet.op(), op, "{packet:?}");
        packet
    }

    /// Sends a packet of the guest's, header and data in one buffer.
    fn send(&mut self, header: PacketHeader, data: &[u8]) {
        self.mem.write_slice(header.as_bytes(), self.outgoing).unwrap();
        let at = GuestAddress(self.outgoing.0 + PacketHeader::LEN as u64);
        self.mem.write_slice(data, at).unwrap();
        let len = u32::try_from(PacketHeader::LEN + data.len()).unwrap();
        assert_eq!(self.driver.send(TX, &[MockDescriptor::readable(self.outgoing, len)]), 0);
    }

    fn op(&mut self, op: Op, host: u32, guest: u32) {
        self.send(header(op, host, guest), &[]);
    }

    fn data(&mut self, host: u32, guest: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap().into();
        self.send(PacketHeader { len, ..header(Op::Rw, host, guest) }, data);
    }

    /// A program on the host connects to `port` of the guest, which accepts; the host's port.
    fn connected(&mut self, port: u32) -> (UnixStream, u32) {
        let mut program = UnixStream::connect(&self.path).unwrap();
        program.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        self.host_event();
        let request = self.expect(Op::Request);
        assert_eq!(request.header.dst_port.get(), port);
        let host = request.header.src_port.get();
        self.op(Op::Response, host, port);
        let mut line = vec![0; format!("OK {host}\n").len()];
        program.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {host}\n").as_bytes());
        program.set_nonblocking(true).unwrap();
        (program, host)
    }

    /// Connections, watched sockets, and packets that wait.
    fn held(&self) -> (usize, usize, usize) {
        self.device.lock().held()
    }
}

/// A packet of the guest's without data.
fn header(op: Op, host: u32, guest: u32) -> PacketHeader {
    PacketHeader {
        src_cid: CID.into(),
        dst_cid: 2.into(),
        src_port: guest.into(),
        dst_port: host.into(),
        kind: 1.into(),
        op: u16::from(op).into(),
        buf_alloc: ROOM.into(),
        ..PacketHeader::default()
    }
}

/// Data that a program can read now.
fn read_now(program: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        match program.read(&mut buffer) {
            Ok(0) => return all,
            Ok(len) => all.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed * 31 + i / 5) as u8).collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
