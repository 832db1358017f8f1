// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Model checks of a frame's word and of the spin lock: all interleavings of two or three threads.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::ids::Order;
use super::page::{FrameMeta, OwnerId, Word};
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
fn two_owners_threads_free_it_once() {
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
