// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Credit (virtio 1.3, 5.10.6.3): each side reports the size of its buffer and how many bytes have
//! left it; the other may have at most as many bytes in flight as fit.
//!
//! Counters wrap around at 32 bits, and the guest's may be false: that costs the guest its own data
//! or connection, never host memory.

/// Room for what the guest sends on one connection, in bytes.
pub(super) const BUFFER: u32 = 256 << 10;

/// Credit in both directions of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's buffer.
    guest_buffer: u32,
    /// Bytes that its program has taken from there.
    guest_taken: u32,
    /// Bytes taken from the guest.
    received: u32,
    /// Of these, passed on to the host's program.
    forwarded: u32,
    /// `forwarded` as last sent to the guest.
    told: u32,
}

impl Credit {
    /// The guest's report about its buffer, in any of its packets.
    pub(super) fn update(&mut self, buffer: u32, taken: u32) {
        self.guest_buffer = buffer;
        self.guest_taken = taken;
    }

    /// Bytes that the guest has room for.
    pub(super) fn guest_room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// `len` bytes go to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Accepts `len` bytes from the guest; false if they exceed its credit.
    pub(super) fn receive(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if held.checked_add(len).is_none_or(|held| held > BUFFER) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// `len` bytes were passed on to the host's program.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest believes that little room is left although there is more.
    pub(super) fn worth_telling(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER / 4
    }

    /// The device's own buffer and what has left it, for a header that goes to the guest now.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_wrap_around() {
        let mut credit =
            Credit { received: u32::MAX - 10, forwarded: u32::MAX - 10, ..Credit::default() };
        assert!(credit.receive(BUFFER));
        assert!(!credit.receive(1));
        credit.forward(100);
        assert!(credit.receive(100));
        assert!(!credit.receive(u32::MAX));
        credit.update(1000, u32::MAX);
        credit.sent = 499;
        assert_eq!(credit.guest_room(), 500);
    }

    proptest! {
        /// A guest that respects its credit never loses its connection; for any other, at most the
        /// buffer is held.
        #[test]
        fn no_more_than_the_buffer_is_held(steps in prop::collection::vec((any::<bool>(), 1u32..400_000), 1..200)) {
            let mut credit = Credit::default();
            let mut held = 0u32;
            for (sends, len) in steps {
                if sends {
                    let allowed = held + len <= BUFFER;
                    prop_assert_eq!(credit.receive(len), allowed);
                    held += if allowed { len } else { 0 };
                } else {
                    let len = len.min(held);
                    credit.forward(len);
                    held -= len;
                }
            }
        }

        #[test]
        fn a_lie_never_gives_more_room_than_the_guest_says_it_has(sent: u32, buffer: u32, taken: u32) {
            let mut credit = Credit { sent, ..Credit::default() };
            credit.update(buffer, taken);
            prop_assert!(credit.guest_room() <= buffer);
        }
    }
}
