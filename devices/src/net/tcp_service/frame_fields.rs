// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fields of a frame that are checked before the stack sees it (RFC 791, 826, 894).

use std::net::Ipv4Addr;
use std::ops::Range;

pub(super) const ETHERTYPE: Range<usize> = 12..14;
pub(super) const ARP: [u8; 2] = [0x08, 0x06];
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
const SENDER_MAC: Range<usize> = 6..12;
/// Source address in a frame with an IPv4 packet.
const IPV4_SOURCE: Range<usize> = 26..30;
/// Destination address in a frame with an IPv4 packet.
const IPV4_DESTINATION: Range<usize> = 30..34;
/// Target protocol address in a frame with an ARP packet.
const ARP_TARGET: Range<usize> = 38..42;

fn field<const N: usize>(frame: &[u8], at: Range<usize>) -> Option<[u8; N]> {
    frame.get(at)?.try_into().ok()
}

/// Whether the frame carries an IPv4 packet.
pub(super) fn is_ipv4(frame: &[u8]) -> bool {
    field(frame, ETHERTYPE) == Some(IPV4)
}

/// The destination address of a frame with an ARP or IPv4 packet.
pub(super) fn target(frame: &[u8]) -> Option<Ipv4Addr> {
    let at = match field(frame, ETHERTYPE)? {
        ARP => ARP_TARGET,
        IPV4 => IPV4_DESTINATION,
        _ => return None,
    };
    field::<4>(frame, at).map(Ipv4Addr::from)
}

/// The sender of an IPv4 packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameSender {
    mac: [u8; 6],
    address: Ipv4Addr,
}

impl FrameSender {
    /// The sender of `frame`, which carries an IPv4 packet; `None` if it is too short.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let address = field::<4>(frame, IPV4_SOURCE)?.into();
        Some(Self { mac: field(frame, SENDER_MAC)?, address })
    }

    /// An ARP reply from this sender to `mac` and `address`.
    pub(super) fn arp_reply(&self, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
        let mut reply = Vec::with_capacity(ARP_TARGET.end);
        for part in [&mac[..], &self.mac, &ARP, &[0, 1], &IPV4, &[6, 4, 0, 2]] {
            reply.extend_from_slice(part);
        }
        for part in [&self.mac[..], &self.address.octets(), &mac, &address.octets()] {
            reply.extend_from_slice(part);
        }
        reply
    }
}
