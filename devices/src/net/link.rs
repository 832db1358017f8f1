// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of a network device: a TAP, or a stream to a process of the host.

use std::os::fd::{AsFd, BorrowedFd};

use super::protocol::feature;
use super::stream::FrameStream;
use super::tap::Tap;

/// What a TAP's kernel does for frames: checksums and segmentation, both ways.
const OFFLOADS: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN;

/// Where the frames of one pair of queues come from and go to.
#[derive(Debug)]
pub enum Link {
    /// A queue of a TAP interface: frames with a virtio header, a call each.
    Tap(Tap),
    /// A stream to a process, such as passt(1): frames as they are on a wire.
    Stream(FrameStream),
}

impl Link {
    /// Features that the device can offer for it: what is to be done to frames, and whether the link
    /// can go down.
    pub(super) fn features(&self) -> u64 {
        match self {
            Self::Tap(_) => OFFLOADS,
            Self::Stream(_) => feature::STATUS,
        }
    }

    /// Whether it has to be watched for room to send.
    pub(super) fn can_fill_up(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// Tells it what frames the driver takes, by the features that it accepted.
    pub(super) fn set_offloads(&self, features: u64) -> std::io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offloads(features),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Enables or disables reception on this queue.
    pub(super) fn enable(&self, on: bool) -> std::io::Result<()> {
        match self {
            Self::Tap(tap) => tap.enable(on),
            Self::Stream(_) => Ok(()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

/// Has the kernel spread frames over the first `pairs` queues of the TAP, by a call for each queue.
pub(super) fn use_pairs(links: &[Link], pairs: u16) -> bool {
    let pairs = usize::from(pairs);
    if pairs == 0 || pairs > links.len() {
        return false;
    }
    // The first is always in use; a TAP with a single queue has no such setting.
    for (at, link) in links.iter().enumerate().skip(1) {
        if let Err(error) = link.enable(at < pairs) {
            tracing::warn!(%error, "cannot change the queues of a TAP");
            return false;
        }
    }
    true
}
