// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device on the wire (virtio 1.3, 5.1). Decoding only; all fields are little-endian.

use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device type of a network card.
pub const DEVICE_TYPE: u32 = 1;
/// Bytes before each frame (5.1.6): flags, segmentation, checksum, number of buffers.
pub const HEADER_LEN: usize = 12;
/// Offset of the number of buffers in it.
pub const NUM_BUFFERS: usize = 10;
/// Longest frame with its header: 64 KiB of packet, 14 bytes of Ethernet, 12 of header
/// (5.1.6.3.1).
pub const MAX_FRAME: usize = 65_562;

/// Feature bits (5.1.3).
pub mod feature {
    /// The device finishes checksums of frames that are sent.
    pub const CSUM: u64 = 1 << 0;
    /// The driver accepts frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `mtu` is valid.
    pub const MTU: u64 = 1 << 3;
    /// `mac` is valid.
    pub const MAC: u64 = 1 << 5;
    /// The driver accepts large TCP segments over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver accepts large TCP segments over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver accepts large TCP segments with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device accepts large TCP segments over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device accepts large TCP segments over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device accepts large TCP segments with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A frame may be received into several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` is valid.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several queue pairs.
    pub const MQ: u64 = 1 << 22;
}

/// State of the link: frames come and go (5.1.4).
pub const LINK_UP: u16 = 1;

/// The fields of configuration space (5.1.4) that this device has.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NetConfigSpace {
    /// The guest's address.
    pub mac: [u8; 6],
    /// State of the link ([`LINK_UP`]), if the device offers that.
    pub status: U16,
    /// Queue pairs.
    pub max_virtqueue_pairs: U16,
    /// Largest packet.
    pub mtu: U16,
}

/// Commands of the control queue (5.1.6.5).
pub mod control {
    /// Class: queue pairs.
    pub const MQ: u8 = 4;
    /// Command of that class: how many the driver uses.
    pub const VQ_PAIRS_SET: u8 = 0;
    /// Answer: done.
    pub const OK: u8 = 0;
    /// Answer: refused.
    pub const ERR: u8 = 1;
}
