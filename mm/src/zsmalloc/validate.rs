// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recounts what a pool has and compares it with what it keeps count of.

use std::sync::atomic::Ordering;

use super::handle::Place;
use super::pool::ZsPool;
use super::zspage::{EMPTY, FULL, GROUPS, NONE, group_of};

impl ZsPool {
    /// Checks lists, counts and entries against each other.
    ///
    /// # Panics
    /// At the first inconsistency. Meant for tests, while nobody else uses the pool.
    pub fn validate(&self) {
        let mut frames = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let state = slot.state.lock();
            let mut objects = 0;
            for group in 0..GROUPS {
                let mut at = state.head(group);
                let mut zspages = 0;
                while let Some(number) = at {
                    let zspage = self.zspage(number);
                    assert_eq!(usize::from(zspage.class()), index, "zspage {number}");
                    let shape = slot.shape;
                    let used = (0..u16::try_from(shape.objects).unwrap_or(0))
                        .filter_map(|object| Some((object, self.header_of(slot, zspage, object)?)));
                    let mut count = 0;
                    for (object, handle) in used {
                        let entry = self.entries.get(handle).expect("an entry");
                        let place = entry.try_lock(None).expect("live").expect("not mapped");
                        entry.unlock();
                        assert_eq!(place, Place { zspage: number, object });
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
                assert_eq!(zspages, state.counts[group], "zspages in group {group}");
            }
            assert_eq!(objects, state.objects, "objects of {:?}", slot.shape);
        }
        assert_eq!(frames, self.frames_used.load(Ordering::Relaxed), "frames");
    }
}
