// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fences: a fenced command's number is returned once the command is done (virtio 1.3, 5.7.6.7).
//!
//! The driver orders fences by timeline: one for each context's ring, and one for commands without
//! a context. This device executes each command before it answers, however many rounds that takes,
//! and responds in the order of the control queue. Every timeline is a subset of that order, so all
//! are respected. A viewer reads guest memory only with the device's lock held, so no access
//! outlives a fence.

use zerocopy::little_endian::U32;

use super::protocol::{CommandHeader, header_flag};

/// The response header for `request` without its code: it has the same fence and timeline.
///
/// A command that fails signals its fence too, as the driver waits for it.
pub(super) fn answer_header(request: &CommandHeader) -> CommandHeader {
    let known = header_flag::FENCE | header_flag::RING_IDX;
    let flags = request.flags.get() & known;
    if flags & header_flag::FENCE == 0 {
        return CommandHeader::default();
    }
    let timed = flags & header_flag::RING_IDX != 0;
    CommandHeader {
        kind: U32::ZERO,
        flags: flags.into(),
        fence_id: request.fence_id,
        ctx_id: request.ctx_id,
        ring_idx: if timed { request.ring_idx } else { 0 },
        padding: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u32) -> CommandHeader {
        CommandHeader {
            kind: 0x101.into(),
            flags: flags.into(),
            fence_id: 77.into(),
            ctx_id: 3.into(),
            ring_idx: 2,
            padding: [0xff; 3],
        }
    }

    #[test]
    fn the_fence_and_its_timeline_come_back() {
        let answer = answer_header(&header(header_flag::FENCE | header_flag::RING_IDX | 1 << 31));
        assert_eq!(answer.flags.get(), header_flag::FENCE | header_flag::RING_IDX);
        assert_eq!((answer.fence_id.get(), answer.ctx_id.get(), answer.ring_idx), (77, 3, 2));
        assert_eq!(answer_header(&header(header_flag::FENCE)).ring_idx, 0);
    }

    #[test]
    fn without_a_fence_nothing_is_signalled() {
        let answer = answer_header(&header(header_flag::RING_IDX));
        assert_eq!((answer.flags.get(), answer.fence_id.get()), (0, 0));
    }
}
