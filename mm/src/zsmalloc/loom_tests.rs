// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Model checks of a handle's lock bit, of a zspage's read-write lock, and of reading an object
//! while its frame migrates.

use loom::cell::{Cell, UnsafeCell};
use loom::sync::Arc;
use loom::thread;

use super::handle::{HandleEntry, ObjectPlace};
use super::zspage::{MapLock, Zspage};
use crate::frames::FrameId;

/// A value that loom checks for races.
struct Shared<L> {
    lock: L,
    value: Cell<u32>,
}

// SAFETY: the tests touch `value` only as the lock under test allows; loom reports it if that
// lets two threads in at once.
unsafe impl<L: Sync> Sync for Shared<L> {}
// SAFETY: a cell of a number may go anywhere.
unsafe impl<L: Send> Send for Shared<L> {}

#[test]
fn the_handle_bit_excludes_and_freeing_ends_it() {
    loom::model(|| {
        let shared = Arc::new(Shared { lock: HandleEntry::new(), value: Cell::new(0) });
        let generation = shared.lock.publish(ObjectPlace { zspage: 5, object: 6 });
        let reader = thread::spawn({
            let shared = shared.clone();
            move || {
                if shared.lock.lock(generation).is_ok() {
                    assert_eq!(shared.value.get(), 0, "freed under a reader");
                    shared.lock.unlock();
                }
            }
        });
        shared.lock.lock(generation).expect("not freed yet");
        shared.value.set(1);
        shared.lock.retire();
        reader.join().unwrap();
        assert!(shared.lock.lock(generation).is_err());
    });
}

#[test]
fn an_object_that_moves_is_seen_before_or_after() {
    loom::model(|| {
        let entry = Arc::new(HandleEntry::new());
        let (old, new) =
            (ObjectPlace { zspage: 1, object: 2 }, ObjectPlace { zspage: 3, object: 4 });
        let generation = entry.publish(old);
        let mover = thread::spawn({
            let entry = entry.clone();
            move || {
                if matches!(entry.try_lock(None), Ok(Some(_))) {
                    entry.relocate(new);
                }
            }
        });
        let place = entry.lock(generation).expect("live");
        assert!(place == old || place == new);
        entry.unlock();
        mover.join().unwrap();
    });
}

#[test]
fn a_writer_and_a_reader_exclude_each_other() {
    loom::model(|| {
        let shared = Arc::new(Shared { lock: MapLock::new(), value: Cell::new(0) });
        let writer = thread::spawn({
            let shared = shared.clone();
            move || {
                if shared.lock.try_write() {
                    shared.value.set(1);
                    shared.value.set(2);
                    shared.lock.unwrite();
                }
            }
        });
        shared.lock.read();
        let seen = shared.value.get();
        shared.lock.unread();
        assert!(seen == 0 || seen == 2, "half written: {seen}");
        writer.join().unwrap();
        assert!(shared.lock.try_write(), "all gone");
    });
}

/// Two frames of memory, a zspage that has the first, and the handle of its one object.
struct Migration {
    memory: [UnsafeCell<u32>; 2],
    zspage: Zspage,
    entry: HandleEntry,
}

// SAFETY: the tests touch `memory` only as the locks under test allow; loom reports it if that lets
// two threads in at once.
unsafe impl Sync for Migration {}
// SAFETY: cells of numbers may go anywhere.
unsafe impl Send for Migration {}

/// `ZsPool::map` beside `ZsPool::migrate`: the object is read in the old frame or in the new, whole,
/// and no thread reads the old frame after the move.
#[test]
fn an_object_is_read_while_its_frame_migrates() {
    loom::model(|| {
        let shared = Arc::new(Migration {
            memory: [UnsafeCell::new(7), UnsafeCell::new(0)],
            zspage: Zspage::new(),
            entry: HandleEntry::new(),
        });
        shared.zspage.open(0, &[FrameId::new(0)]);
        let generation = shared.entry.publish(ObjectPlace { zspage: 0, object: 0 });
        let mover = thread::spawn({
            let shared = shared.clone();
            move || {
                if !shared.zspage.lock.try_write() {
                    return;
                }
                // SAFETY: what is being checked: the lock keeps readers of the source away.
                let value = shared.memory[0].with(|source| unsafe { *source });
                // SAFETY: as above.
                shared.memory[1].with_mut(|target| unsafe { *target = value });
                shared.zspage.set_frame(0, FrameId::new(1));
                shared.zspage.lock.unwrite();
                // The source is free, and its next user writes it.
                // SAFETY: as above.
                shared.memory[0].with_mut(|source| unsafe { *source = 99 });
            }
        });
        shared.entry.lock(generation).expect("live");
        shared.zspage.lock.read();
        let frame = shared.zspage.frame(0).as_usize();
        // SAFETY: what is being checked: the lock keeps the object where it is.
        let seen = shared.memory[frame].with(|object| unsafe { *object });
        shared.zspage.lock.unread();
        shared.entry.unlock();
        assert_eq!(seen, 7, "in frame {frame}");
        mover.join().unwrap();
    });
}
