// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction of a class: objects of its emptiest zspages move into its fullest, until the
//! objects could not be held by fewer zspages.

use super::bytes::Span;
use super::chain::Emptied;
use super::handle::ObjectPlace;
use super::heap::Heap;
use super::lists::{Class, ClassState};
use super::zspage::{EMPTY, FULL, NONE};

/// Compacts classes until at least `frames` frames were freed; returns how many were.
pub(super) fn compact(heap: &Heap, frames: u64) -> u64 {
    let mut freed = 0;
    for class in heap.classes() {
        if freed >= frames {
            break;
        }
        freed += compact_class(heap, class);
    }
    heap.add_compacted(freed);
    freed
}

/// Frames that compaction could free, at most.
pub(super) fn compactable(heap: &Heap) -> u64 {
    let of = |class: &Class| {
        let state = class.lock();
        (state.zspages() as usize - state.needed(class.shape())) * class.shape().frames
    };
    heap.classes().iter().map(|class| of(class) as u64).sum()
}

fn compact_class(heap: &Heap, class: &Class) -> u64 {
    let mut freed = 0;
    // The lock is dropped after each zspage: others wait for a few dozen copies at most.
    loop {
        let mut state = class.lock();
        let emptied = match state.head(EMPTY) {
            Some(empty) => Some(Emptied::detach(&mut state, heap.zspages(), empty)),
            None if state.zspages() as usize <= state.needed(class.shape()) => None,
            None => empty_one(heap, class, &mut state),
        };
        drop(state);
        match emptied {
            Some(emptied) => freed += emptied.free(heap.supply(), heap.zspages()),
            None => return freed,
        }
    }
}

/// Moves all objects out of the emptiest zspage that is not in use. `None` without one, or without
/// room for its objects.
fn empty_one(heap: &Heap, class: &Class, state: &mut ClassState) -> Option<Emptied> {
    let zspages = heap.zspages();
    let mut group = EMPTY + 1;
    let mut at = None;
    loop {
        at = match at {
            None if group < FULL => state.head(group),
            None => return None,
            Some(number) => Some(zspages.at(number).next()).filter(|&n| n != NONE),
        };
        let Some(source) = at else {
            group += 1;
            continue;
        };
        let zspage = zspages.at(source);
        // No object of it is mapped, and none can be until this is given back.
        if !zspage.lock.try_write() {
            continue;
        }
        // Off its list, so that it is not its own destination.
        state.unlink(zspages, source);
        let done = move_all(heap, class, state, source);
        zspage.lock.unwrite();
        state.insert(zspages, source, usize::from(zspage.group()));
        state.count(zspages, class.shape(), source, zspage.inuse());
        return done.then(|| Emptied::detach(state, zspages, source));
    }
}

/// Moves the objects of a locked zspage elsewhere; `true` if none is left.
fn move_all(heap: &Heap, class: &Class, state: &mut ClassState, source: u32) -> bool {
    let (zspages, shape, objects) = (heap.zspages(), class.shape(), heap.objects(class));
    let region = heap.supply().region();
    let zspage = zspages.at(source);
    for object in shape.numbers() {
        let Some(handle) = objects.handle_of(zspage, object) else { continue };
        let Some(target) = (EMPTY + 1..FULL).rev().find_map(|group| state.head(group)) else {
            return false;
        };
        let Some(entry) = heap.handles().get(handle) else { continue };
        // Another thread holds the object and waits to map or free it.
        if !matches!(entry.try_lock(None), Ok(Some(_))) {
            continue;
        }
        let into = zspages.at(target);
        debug_assert!(into.has_room(shape));
        let free = objects.pop_free(into);
        let from = Span::new(region, shape, zspage, object);
        let mut to = Span::new(region, shape, into, free);
        // SAFETY: the source's handle bit and its zspage's write lock are held; the target
        // object is free, and the class lock keeps others from taking it.
        unsafe { to.copy_from(&from) };
        objects.set_handle(into, free, handle);
        state.count(zspages, shape, target, into.inuse() + 1);
        entry.relocate(ObjectPlace { zspage: target, object: free });
        objects.push_free(zspage, object);
        zspage.set_inuse(zspage.inuse() - 1);
    }
    zspage.inuse() == 0
}
