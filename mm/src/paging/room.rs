// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much memory the host can give now, and what a fault may therefore bring back.
//!
//! Memory comes back faster than it can be compressed: without a bound, guests that compete for
//! memory push each other over the limit, and one of them is killed. So a fault asks here first. A
//! host with enough memory is asked seldom.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::units::Bytes;

/// With less room than this, only single pages come back, and room is made.
const FOR_BLOCKS: Bytes = Bytes(16 << 20);
/// With less room than this, faults wait for room.
const FOR_PAGES: Bytes = Bytes(4 << 20);
/// Room that is made, so that it need not be made for each fault.
const ENOUGH: Bytes = Bytes(32 << 20);
/// Memory that is never taken: the kernel needs some for page tables.
const LAST: Bytes = Bytes(2 << 20);
/// Bytes that other processes may take in a millisecond: figures are believed until they could have
/// taken what is left.
const TAKEN_IN_A_MS: u64 = FOR_BLOCKS.0 / 10;
/// Shortest and longest time for which figures are believed, in milliseconds.
const BELIEVED_MS: [u64; 2] = [10, 500];

/// Memory that the host can give to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoom {
    /// Before the host counts as short, or throttles this process.
    pub before_short: Bytes,
    /// Before nothing is left, and a process is killed.
    pub before_full: Bytes,
}

impl HostRoom {
    /// More than there is.
    pub const UNLIMITED: Self =
        Self { before_short: Bytes(u64::MAX), before_full: Bytes(u64::MAX) };

    /// For how long this may be taken as true.
    fn believed(self) -> Duration {
        let [shortest, longest] = BELIEVED_MS;
        Duration::from_millis((self.before_short.0 / TAKEN_IN_A_MS).clamp(shortest, longest))
    }

    fn less(self, taken: Bytes) -> Self {
        Self {
            before_short: self.before_short.saturating_sub(taken),
            before_full: self.before_full.saturating_sub(taken),
        }
    }
}

/// The host, as the pager sees it.
pub trait RoomSource: Send + Sync {
    /// Its room now. Called up to a hundred times in a second.
    fn room(&self) -> HostRoom;
}

/// What a fault may bring back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Its block, if it is used.
    Block,
    /// Its page.
    Page,
    /// Its page, but after a pause, as there is little room.
    PageLater,
    /// Nothing now.
    Nothing,
}

/// Called when there is little room: something should be evicted.
pub type OnShortage = Box<dyn Fn() + Send + Sync>;

/// What is known of the host's room.
pub(super) struct Room {
    host: Option<Box<dyn RoomSource>>,
    /// When it was asked, and what is left of that.
    seen: Mutex<Option<(Instant, HostRoom)>>,
    on_shortage: Mutex<Option<OnShortage>>,
}

impl Room {
    /// Of `host`; unlimited without one.
    pub(super) fn new(host: Option<Box<dyn RoomSource>>) -> Self {
        Self { host, seen: Mutex::new(None), on_shortage: Mutex::new(None) }
    }

    /// Calls `hook` from now on when a fault finds little room.
    pub(super) fn set_on_shortage(&self, hook: Option<OnShortage>) {
        *lock(&self.on_shortage) = hook;
    }

    /// What a fault may bring back now.
    pub(super) fn grant(&self) -> Grant {
        let Some(room) = self.now() else { return Grant::Block };
        let grant = judge(room);
        if grant != Grant::Block
            && let Some(hook) = &*lock(&self.on_shortage)
        {
            hook();
        }
        grant
    }

    /// What the host has, as far as is known; `None` if that is not limited.
    fn now(&self) -> Option<HostRoom> {
        let host = self.host.as_ref()?;
        let mut seen = lock(&self.seen);
        let (at, room) = match *seen {
            Some((at, room)) if at.elapsed() < room.believed() => (at, room),
            _ => (Instant::now(), host.room()),
        };
        *seen = Some((at, room));
        Some(room)
    }

    /// For how long what is known now is believed.
    pub(super) fn known_for(&self) -> Duration {
        let [_, longest] = BELIEVED_MS;
        self.now().map_or(Duration::from_millis(longest), HostRoom::believed)
    }

    /// Memory was taken from the host after a grant.
    pub(super) fn took(&self, bytes: Bytes) {
        if let Some((_, room)) = &mut *lock(&self.seen) {
            *room = room.less(bytes);
        }
    }

    /// Whether room should be made; with `more`, whether more should be than is there at present.
    pub(super) fn is_short(&self, more: bool) -> bool {
        let least = if more { ENOUGH } else { FOR_BLOCKS };
        self.now().is_some_and(|room| room.before_short < least)
    }
}

fn judge(room: HostRoom) -> Grant {
    if room.before_full <= LAST {
        Grant::Nothing
    } else if room.before_short >= FOR_BLOCKS {
        Grant::Block
    } else if room.before_short >= FOR_PAGES {
        Grant::Page
    } else {
        Grant::PageLater
    }
}

/// A panic in another thread leaves these consistent: each change is complete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const MIB: u64 = 1 << 20;

    struct Fixed(Arc<AtomicU64>);

    impl RoomSource for Fixed {
        fn room(&self) -> HostRoom {
            let room = Bytes(self.0.load(Ordering::Relaxed));
            HostRoom { before_short: room, before_full: room.saturating_add(Bytes(32 * MIB)) }
        }
    }

    #[test]
    fn less_room_gives_less_and_asks_for_more() {
        let (left, asked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let room = Room::new(Some(Box::new(Fixed(Arc::clone(&left)))));
        let count = Arc::clone(&asked);
        room.set_on_shortage(Some(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })));
        let grant = |mib: u64| {
            left.store(mib * MIB, Ordering::Relaxed);
            *lock(&room.seen) = None;
            room.grant()
        };
        assert_eq!(grant(100), Grant::Block);
        assert_eq!((grant(15), grant(3)), (Grant::Page, Grant::PageLater));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        assert!(room.is_short(false) && room.is_short(true));
        assert_eq!(grant(20), Grant::Block);
        assert!(!room.is_short(false) && room.is_short(true));
        let full = HostRoom { before_short: Bytes(0), before_full: LAST };
        assert_eq!(judge(full), Grant::Nothing);
        assert_eq!(Room::new(None).grant(), Grant::Block);
    }

    /// Between two looks at the host, what was taken counts.
    #[test]
    fn grants_stay_within_the_room() {
        let left = Arc::new(AtomicU64::new(40 * MIB));
        let room = Room::new(Some(Box::new(Fixed(left))));
        let mut taken = 0;
        // In the future, so that these figures are believed throughout.
        *lock(&room.seen) =
            room.host.as_ref().map(|host| (Instant::now() + Duration::from_secs(600), host.room()));
        while room.grant() == Grant::Block {
            room.took(Bytes(2 * MIB));
            taken += 2;
        }
        assert_eq!(taken, 26);
        while room.grant() == Grant::Page {
            room.took(Bytes(4096));
        }
        assert_eq!(room.grant(), Grant::PageLater);
    }
}
