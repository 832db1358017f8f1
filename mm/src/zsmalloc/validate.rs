// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recounts the pool's contents and compares them with its counters.

use super::handle::ObjectPlace;
use super::heap::Heap;
use super::zspage::{EMPTY, FULL, GROUPS, NONE, group_of};

/// Panics at the first contradiction.
pub(super) fn validate(heap: &Heap) {
    let mut frames = 0;
    for (index, class) in heap.classes().iter().enumerate() {
        let state = class.lock();
        let objects_of = heap.objects(class);
        let mut objects = 0;
        for group in 0..GROUPS {
            let mut at = state.head(group);
            let mut zspages = 0;
            while let Some(number) = at {
                let zspage = heap.zspages().at(number);
                assert_eq!(usize::from(zspage.class()), index, "zspage {number}");
                let shape = *class.shape();
                let used = shape
                    .numbers()
                    .filter_map(|object| Some((object, objects_of.handle_of(zspage, object)?)));
                let mut count = 0;
                for (object, handle) in used {
                    let entry = heap.handles().get(handle).expect("an entry");
                    let place = entry.try_lock(None).expect("live").expect("not mapped");
                    entry.unlock();
                    assert_eq!(place, ObjectPlace { zspage: number, object });
                    count += 1;
                }
                assert_eq!(count, zspage.inuse(), "objects in zspage {number}");
                let want = group_of(count, shape.objects);
                let ends = [want, group].iter().any(|&g| g == EMPTY || g == FULL);
                assert!(want.abs_diff(group) <= usize::from(!ends), "group of {number}");
                objects += u32::from(count);
                frames += shape.frames as u64;
                zspages += 1;
                at = Some(zspage.next()).filter(|&n| n != NONE);
            }
            assert_eq!(zspages, state.counts()[group], "zspages in group {group}");
        }
        assert_eq!(objects, state.objects(), "objects of {:?}", *class.shape());
    }
    assert_eq!(frames, heap.supply().used(), "frames");
}
