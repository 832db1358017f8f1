// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket device on the wire (virtio 1.3, 5.10). Decoding only; all fields are little-endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device type of a socket device.
pub const DEVICE_TYPE: u32 = 19;
/// The host's address (5.10.4).
pub const HOST_CID: u64 = 2;
/// Type of stream sockets (5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// Flags of a shutdown (5.10.6.6).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// Header of every packet (5.10.6).
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct PacketHeader {
    /// Sender's address.
    pub src_cid: U64,
    /// Receiver's address.
    pub dst_cid: U64,
    /// Sender's port.
    pub src_port: U32,
    /// Receiver's port.
    pub dst_port: U32,
    /// Bytes behind the header.
    pub len: U32,
    /// Type of socket.
    pub kind: U16,
    /// Operation.
    pub op: U16,
    /// Flags of the operation.
    pub flags: U32,
    /// Room that the sender has for this connection in all.
    pub buf_alloc: U32,
    /// Bytes that have left that room so far.
    pub fwd_cnt: U32,
}

impl PacketHeader {
    /// Its length in bytes.
    pub const LEN: usize = size_of::<Self>();
}

/// Operations (5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Connect.
    Request,
    /// Connected.
    Response,
    /// The connection does not exist, or no longer exists.
    Reset,
    /// One or both directions end.
    Shutdown,
    /// Data.
    Rw,
    /// How much the sender has room for.
    CreditUpdate,
    /// Asks for that.
    CreditRequest,
    /// None of these.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(raw: u16) -> Self {
        match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Rw => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(raw) => raw,
        }
    }
}
