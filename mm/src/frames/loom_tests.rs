// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Model checks of a frame's word, of the spin lock, and of a cache beside a block that is being
//! isolated: all interleavings of two or three threads.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::cache::Cache;
use super::ids::{FrameId, Order};
use super::page::{FrameMeta, OwnerId, Word};
use super::pageblock::{BlockTypes, MigrateType, Mobility};
use super::sync::SpinLock;

const OWNER: OwnerId = OwnerId(3);

/// A movable frame, and how often it was freed.
struct Frame {
    meta: FrameMeta,
    freed: AtomicU32,
}

impl Frame {
    fn new() -> Arc<Self> {
        let meta = FrameMeta::new();
        meta.store(Word::used(Order::ZERO));
        meta.adopt(OWNER, 9);
        Arc::new(Self { meta, freed: AtomicU32::new(0) })
    }

    fn put(&self, last: bool) {
        if last {
            self.freed.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn freed(&self) -> u32 {
        self.freed.load(Ordering::SeqCst)
    }

    /// What the core does with one frame; the owner's callback only looks.
    fn isolate_and_put_back(&self) {
        if self.meta.begin_isolate().is_none() {
            return;
        }
        self.meta.finish_isolate();
        assert_eq!(self.freed(), 0, "freed while the core has a reference");
        self.meta.lock();
        self.put(self.meta.end_isolate());
    }
}

#[test]
fn a_frame_freed_during_isolation_is_freed_once() {
    loom::model(|| {
        let frame = Frame::new();
        let core = thread::spawn({
            let frame = frame.clone();
            move || frame.isolate_and_put_back()
        });
        frame.put(frame.meta.disown(OWNER).expect("still ours"));
        core.join().unwrap();
        assert_eq!(frame.freed(), 1);
    });
}

#[test]
fn two_movers_never_both_isolate() {
    loom::model(|| {
        let frame = Frame::new();
        let won = Arc::new(AtomicU32::new(0));
        let movers: Vec<_> = (0..2)
            .map(|_| {
                let (frame, won) = (frame.clone(), won.clone());
                thread::spawn(move || {
                    if frame.meta.begin_isolate().is_some() {
                        frame.meta.finish_isolate();
                        won.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        movers.into_iter().for_each(|m| m.join().unwrap());
        assert_eq!(won.load(Ordering::SeqCst), 1);
        assert_eq!(frame.meta.load().refs(), 2);
    });
}

#[test]
fn two_threads_of_an_owner_free_it_once() {
    loom::model(|| {
        let frame = Frame::new();
        let other = thread::spawn({
            let frame = frame.clone();
            move || frame.meta.disown(OWNER).map(|last| frame.put(last)).is_some()
        });
        let mine = frame.meta.disown(OWNER).map(|last| frame.put(last)).is_some();
        assert!(mine ^ other.join().unwrap(), "exactly one of them had it");
        assert_eq!(frame.freed(), 1);
    });
}

#[test]
fn a_pinned_frame_outlives_its_owner() {
    loom::model(|| {
        let frame = Frame::new();
        let user = thread::spawn({
            let frame = frame.clone();
            move || {
                if frame.meta.try_pin(OWNER).is_ok() {
                    assert_eq!(frame.freed(), 0);
                    frame.put(frame.meta.unlock_put());
                }
            }
        });
        frame.put(frame.meta.disown(OWNER).expect("still ours"));
        user.join().unwrap();
        assert_eq!(frame.freed(), 1);
    });
}

#[test]
fn reclaiming_and_isolating_exclude_each_other() {
    loom::model(|| {
        let frame = Frame::new();
        let core = thread::spawn({
            let frame = frame.clone();
            move || frame.meta.begin_isolate().map(|_| frame.meta.finish_isolate()).is_some()
        });
        let reclaimed = frame.meta.reclaim(OWNER);
        let isolated = core.join().unwrap();
        assert!(reclaimed ^ isolated, "reclaimed {reclaimed}, isolated {isolated}");
    });
}

/// What `free_single` and `Isolation::begin` with `drain_caches` rest on: a frame of a block that
/// was marked and whose caches were emptied after that is in no cache.
#[test]
fn no_frame_of_an_isolated_block_stays_in_a_cache() {
    loom::model(|| {
        let blocks = BlockTypes::new(512, MigrateType::Movable);
        let shared = Arc::new((blocks, SpinLock::new(Cache::new())));
        let frame = FrameId::new(7);
        let freeing = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut cache = shared.1.lock();
                let cached = shared.0.type_at(frame) == MigrateType::Movable;
                if cached {
                    cache.list(Mobility::Movable).push(frame);
                }
                cached
            }
        });
        shared.0.set_type(frame.block(), MigrateType::Isolate);
        let drained = shared.1.lock().drain().count();
        let cached = freeing.join().unwrap();
        assert_eq!(drained == 1, cached);
        assert_eq!(shared.1.lock().cached(), 0);
    });
}

#[test]
fn the_spin_lock_excludes() {
    loom::model(|| {
        let lock = Arc::new(SpinLock::new(loom::cell::Cell::new(0)));
        let other = thread::spawn({
            let lock = lock.clone();
            move || {
                let cell = lock.lock();
                cell.set(cell.get() + 1);
            }
        });
        if let Some(cell) = lock.try_lock() {
            cell.set(cell.get() + 10);
        } else {
            let cell = lock.lock();
            cell.set(cell.get() + 10);
        }
        other.join().unwrap();
        assert_eq!(lock.lock().get(), 11);
    });
}
