// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An owner of movable frames for tests: a table of frames, each filled with a value of its own,
//! and switches that make the callbacks refuse, fail, panic or report false results.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::frames::*;
use crate::units::{BLOCK_BYTES, PAGE_BYTES};

/// How the callbacks behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Mood {
    Honest,
    RefuseIsolation,
    FailFinal,
    /// `Again` twice, then well.
    FailTwice,
    PanicInIsolate,
    PanicInMigrate,
    PanicInPutback,
    /// Says that it moved the frame and did nothing.
    Lie,
    /// Adopts the destination and then says that it failed.
    AdoptAndFail,
    /// Frees the frame inside `isolate`.
    FreeInIsolate,
    /// Frees the frame inside `migrate` and says `Again`.
    FreeInMigrate,
    /// Allocates and frees, and asks for contents, inside `migrate`.
    Reenter,
}

const MOODS: [Mood; 12] = [
    Mood::Honest,
    Mood::RefuseIsolation,
    Mood::FailFinal,
    Mood::FailTwice,
    Mood::PanicInIsolate,
    Mood::PanicInMigrate,
    Mood::PanicInPutback,
    Mood::Lie,
    Mood::AdoptAndFail,
    Mood::FreeInIsolate,
    Mood::FreeInMigrate,
    Mood::Reenter,
];

/// The driver: key -> frame, where the owner's word of the frame is the key.
pub(super) struct Driver {
    owner: OnceLock<Owner>,
    pub(super) table: Mutex<BTreeMap<u32, FrameId>>,
    mood: AtomicU32,
    /// Migrations refused, by key.
    refused: Mutex<BTreeMap<u32, u32>>,
    next: AtomicU32,
    pub(super) isolated: AtomicU64,
    pub(super) migrated: AtomicU64,
    pub(super) putback: AtomicU64,
}

impl Driver {
    pub(super) fn new(pool: &Arc<FramePool>) -> Arc<Self> {
        let driver = Arc::new(Self {
            owner: OnceLock::new(),
            table: Mutex::default(),
            mood: AtomicU32::new(0),
            refused: Mutex::default(),
            next: AtomicU32::new(0),
            isolated: AtomicU64::new(0),
            migrated: AtomicU64::new(0),
            putback: AtomicU64::new(0),
        });
        let ops: Arc<dyn MovableOps> = driver.clone();
        let weak: Weak<dyn MovableOps> = Arc::downgrade(&ops);
        let owner = Owner::register(pool, weak).unwrap();
        assert!(driver.owner.set(owner).is_ok());
        driver
    }

    pub(super) fn owner(&self) -> &Owner {
        self.owner.get().unwrap()
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        quiet();
        self.refused.lock().unwrap().clear();
        self.mood.store(mood as u32, Ordering::SeqCst);
    }

    fn mood(&self) -> Mood {
        MOODS[self.mood.load(Ordering::SeqCst) as usize]
    }

    fn pattern(key: u32) -> u64 {
        u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }

    /// Allocates a frame and fills it.
    pub(super) fn put(&self, gfp: Gfp) -> Result<u32, AllocError> {
        let key = self.next.fetch_add(1, Ordering::SeqCst);
        // Not under the table's lock: the allocation may compact and call back. Until the frame
        // is in the table, `migrate` knows nothing of it and refuses.
        let frame = self.owner().alloc(gfp, key)?;
        self.table.lock().unwrap().insert(key, frame);
        let fill = |bytes: &mut [u8; PAGE_BYTES]| {
            bytes.as_chunks_mut().0.fill(Self::pattern(key).to_le_bytes());
        };
        self.with_key(key, fill);
        Ok(key)
    }

    /// Looks the frame up again when it has moved between look-up and access.
    fn with_key<R>(&self, key: u32, mut f: impl FnMut(&mut [u8; PAGE_BYTES]) -> R) -> R {
        loop {
            let frame = self.table.lock().unwrap()[&key];
            match self.owner().with_frame(frame, |bytes| {
                // A frame that moved away may have come back under another key.
                (self.table.lock().unwrap().get(&key) == Some(&frame)).then(|| f(bytes))
            }) {
                Ok(Some(result)) => return result,
                Ok(None) | Err(OwnerError::NotOwned(_)) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Checks every byte of a frame.
    pub(super) fn check(&self, key: u32) {
        let want = Self::pattern(key).to_le_bytes();
        let good = self.with_key(key, |bytes| bytes.as_chunks().0.iter().all(|c| *c == want));
        assert!(good, "the contents of key {key} changed");
    }

    pub(super) fn check_all(&self) {
        let keys: Vec<u32> = self.table.lock().unwrap().keys().copied().collect();
        for key in keys {
            self.check(key);
        }
    }

    pub(super) fn free(&self, key: u32) {
        let mut table = self.table.lock().unwrap();
        let frame = table.remove(&key).unwrap();
        self.owner().free(frame).unwrap();
    }

    pub(super) fn frame_of(&self, key: u32) -> FrameId {
        self.table.lock().unwrap()[&key]
    }

    /// Counts a refusal.
    fn refuse(&self, key: u32) -> u32 {
        let mut refused = self.refused.lock().unwrap();
        let count = refused.entry(key).or_default();
        *count += 1;
        *count
    }

    fn forget(&self, frame: &LockedFrame<'_>) {
        self.table.lock().unwrap().remove(&frame.private());
        self.owner().free(frame.id()).unwrap();
    }
}

impl MovableOps for Driver {
    fn isolate(&self, frame: &LockedFrame<'_>, _mode: MigrateMode) -> bool {
        match self.mood() {
            Mood::RefuseIsolation => return false,
            Mood::PanicInIsolate => panic!("isolate panics on purpose"),
            Mood::FreeInIsolate => self.forget(frame),
            _ => {}
        }
        self.isolated.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn migrate(
        &self,
        dst: &mut TargetFrame<'_>,
        src: &mut LockedFrame<'_>,
        _mode: MigrateMode,
    ) -> Result<(), MigrateError> {
        let key = src.private();
        match self.mood() {
            Mood::FailFinal | Mood::PanicInPutback => return Err(MigrateError::Busy),
            Mood::FailTwice if self.refuse(key) <= 2 => return Err(MigrateError::Again),
            Mood::PanicInMigrate => panic!("migrate panics on purpose"),
            Mood::Lie => return Ok(()),
            Mood::AdoptAndFail => {
                dst.adopt(u32::MAX);
                return Err(MigrateError::Busy);
            }
            Mood::FreeInMigrate => {
                self.forget(src);
                return Err(MigrateError::Again);
            }
            Mood::Reenter => {
                let pool = self.owner().pool();
                let frames = pool.alloc(Order::ZERO, Gfp::UNMOVABLE.emergency()).unwrap();
                pool.free(frames).unwrap();
                let refused = self.owner().with_frame(src.id(), |_| ());
                assert_eq!(refused, Err(OwnerError::InCallback(src.id())));
                assert_eq!(pool.alloc_contig(8, 1).unwrap_err(), ContigError::InCallback);
            }
            _ => {}
        }
        let mut table = self.table.lock().unwrap();
        if table.get(&key) != Some(&src.id()) {
            return Err(MigrateError::Unknown);
        }
        dst.take_over(src)?;
        table.insert(key, dst.id());
        self.migrated.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn putback(&self, _frame: &LockedFrame<'_>) {
        self.putback.fetch_add(1, Ordering::SeqCst);
        if self.mood() == Mood::PanicInPutback {
            panic!("putback panics on purpose");
        }
    }
}

/// Keeps panics on purpose out of the output: there are thousands, and backtraces are slow.
pub(super) fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<&str>();
            if !text.is_some_and(|text| text.contains("on purpose")) {
                before(info);
            }
        }));
    });
}

/// A pool of `blocks` blocks with exact accounting of single frames (no caches).
pub(super) fn pool(blocks: u32) -> Arc<FramePool> {
    pool_with(
        blocks,
        PoolConfig { uncached: true, watermarks: Some(NO_MARKS), ..Default::default() },
    )
}

pub(super) const NO_MARKS: Watermarks = Watermarks { min: 0, low: 0, high: 0 };

pub(super) fn pool_with(blocks: u32, config: PoolConfig) -> Arc<FramePool> {
    let region = Region::anonymous(blocks as usize * BLOCK_BYTES).unwrap();
    FramePool::new(region, config).unwrap()
}

pub(super) fn blocks(start: u32, count: u32) -> FrameRange {
    FrameRange::new(FrameBlock::new(start).first(), count * BLOCK_FRAMES).unwrap()
}

/// A small deterministic generator (xorshift64*).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }
}
