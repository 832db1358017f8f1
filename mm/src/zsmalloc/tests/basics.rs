// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One thing at a time, and random histories against a model.

use proptest::prelude::*;

use super::{frames, pattern};
use crate::frames::{Gfp, Order, Owner, Shrink};
use crate::units::PAGE_BYTES;
use crate::zsmalloc::*;

fn put(pool: &ZsPool, seed: u64, size: usize) -> Handle {
    let handle = pool.alloc(size).unwrap();
    pool.map(handle).unwrap().write(&pattern(seed, size));
    handle
}

fn holds(pool: &ZsPool, handle: Handle, seed: u64, size: usize) -> bool {
    let mapped = pool.map(handle).unwrap();
    let mut read = vec![0; size];
    mapped.read(&mut read);
    let mut spare = [0; PAGE_BYTES];
    read == pattern(seed, size) && mapped.contiguous(size, &mut spare) == read
}

#[test]
fn every_size_holds_what_is_written() {
    let pool = ZsPool::new(&frames(12), ZsConfig::default()).unwrap();
    let step = if cfg!(miri) { 97 } else { 1 };
    let objects: Vec<_> =
        (1..=MAX_SIZE).step_by(step).map(|s| (s, put(&pool, s as u64, s))).collect();
    assert!(objects.iter().all(|&(s, h)| holds(&pool, h, s as u64, s)));
    pool.validate();
    for (_, handle) in objects {
        pool.free(handle).unwrap();
    }
    pool.compact();
    pool.validate();
    assert_eq!(pool.stats().frames, 0);
    assert_eq!(pool.frame_pool().validate().unwrap().used, 0);
}

#[test]
fn objects_span_frames_without_a_copy_where_these_are_neighbours() {
    let pool = ZsPool::new(&frames(2), ZsConfig::default()).unwrap();
    let (mut whole, mut split) = (0, 0);
    for seed in 0..200 {
        let handle = put(&pool, seed, 1500);
        let mapped = pool.map(handle).unwrap();
        if mapped.slices().1.is_empty() {
            whole += 1;
        } else {
            split += 1;
        }
        drop(mapped);
        assert!(holds(&pool, handle, seed, 1500));
    }
    assert!(whole > 0 && split > 0, "{whole} in one piece, {split} in two");
}

#[test]
fn rejects_invalid_sizes_foreign_handles_and_double_frees() {
    let pool = ZsPool::new(&frames(1), ZsConfig::default()).unwrap();
    let other = ZsPool::new(pool.frame_pool(), ZsConfig::default()).unwrap();
    for size in [0, MAX_SIZE + 1, usize::MAX] {
        assert_eq!(pool.alloc(size), Err(ZsError::Size(size)));
    }
    let handle = pool.alloc(100).unwrap();
    assert_eq!(other.free(handle), Err(ZsError::Foreign));
    assert!(matches!(other.map(handle), Err(ZsError::Foreign)));
    pool.free(handle).unwrap();
    assert_eq!(pool.free(handle), Err(ZsError::Freed));
    assert!(matches!(pool.map(handle), Err(ZsError::Freed)));
    // Made-up numbers.
    let again = pool.alloc(100).unwrap();
    for bits in [0, u64::MAX, again.to_bits() ^ 1 << 16, again.to_bits() ^ 1 << 40] {
        assert!(pool.free(Handle::from_bits(bits)).is_err(), "{bits:#x}");
    }
    pool.free(again).unwrap();
    pool.validate();
}

#[test]
fn a_limit_is_kept() {
    let config = ZsConfig { limit: Some(10), ..ZsConfig::default() };
    let pool = ZsPool::new(&frames(1), config).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| pool.alloc(MAX_SIZE).ok()).collect();
    assert_eq!(held.len(), 10);
    assert_eq!(pool.alloc(MAX_SIZE), Err(ZsError::Limit(10)));
    pool.free(held[0]).unwrap();
    pool.alloc(MAX_SIZE).unwrap();
    assert_eq!(pool.stats().frames_max, 10);
}

#[test]
fn running_out_of_frames_loses_nothing() {
    let frames = frames(1);
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    let mut held = Vec::new();
    let error = loop {
        match pool.alloc(700) {
            Ok(handle) => held.push(handle),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ZsError::Frames(_)));
    pool.validate();
    frames.validate().unwrap();
    held.into_iter().for_each(|h| pool.free(h).unwrap());
    pool.compact();
    assert_eq!(frames.validate().unwrap().used, 0);
}

#[test]
#[cfg(not(miri))]
fn frames_run_out_before_handles_do() {
    let pool = ZsPool::new(&frames(1), ZsConfig::default()).unwrap();
    // Every class keeps entries at hand, once it has had an object.
    for size in 1..=MAX_SIZE {
        pool.free(pool.alloc(size).unwrap()).unwrap();
        pool.compact();
    }
    let error = std::iter::repeat_with(|| pool.alloc(1)).find_map(Result::err);
    assert!(matches!(error, Some(ZsError::Frames(_))), "{error:?}");
    assert!(pool.stats().objects > 510 * 128);
    pool.validate();
}

#[test]
fn compaction_packs_classes_and_keeps_handles() {
    let pool = ZsPool::new(&frames(8), ZsConfig::default()).unwrap();
    let sizes = [40, 300, 1000, 2700];
    let mut held: Vec<_> = (0..2000u64)
        .map(|seed| (seed, sizes[seed as usize % 4], put(&pool, seed, sizes[seed as usize % 4])))
        .collect();
    held.retain(|&(seed, _, handle)| {
        let keep = seed.wrapping_mul(0x9e37_79b9) >> 7 & 3 == 0;
        if !keep {
            pool.free(handle).unwrap();
        }
        keep
    });
    let could = pool.compactable();
    let before = pool.stats().frames;
    assert!(could > 0);
    assert_eq!(pool.compact(), could);
    assert_eq!(pool.stats().frames, before - could);
    assert_eq!(pool.compactable(), 0);
    pool.validate();
    assert!(held.iter().all(|&(seed, size, handle)| holds(&pool, handle, seed, size)));
    for info in pool.class_info() {
        let partial = info.groups[1..info.groups.len() - 1].iter().sum::<u32>();
        assert!(partial <= 1, "one zspage of {:?} may have room", info.class);
    }
}

#[test]
fn sparse_zspages_make_room_for_others() {
    let frames = frames(2);
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    let held: Vec<_> = (0..2000u64).map(|seed| (seed, put(&pool, seed, 1300))).collect();
    let (keep, go): (Vec<_>, Vec<_>) = held.into_iter().partition(|h| h.0 % 4 == 0);
    go.iter().for_each(|h| pool.free(h.1).unwrap());
    let could = pool.compactable();
    assert!(could > 200, "{could}");
    let left = frames.accounting().free;
    let taken: Vec<_> =
        std::iter::from_fn(|| frames.alloc(Order::ZERO, Gfp::UNMOVABLE).ok()).collect();
    assert_eq!((pool.compactable(), frames.events().shrunk), (0, could));
    assert_eq!(taken.len() as u64, u64::from(left - frames.watermarks().min) + could);
    assert!(keep.iter().all(|&(seed, handle)| holds(&pool, handle, seed, 1300)));
    pool.validate();
}

#[test]
#[cfg(not(miri))]
fn mapped_objects_stay_and_the_rest_moves() {
    let frames = frames(4);
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    let held: Vec<_> = (0..3000).map(|seed| (seed, put(&pool, seed, 2000))).collect();
    for &(seed, handle) in &held {
        if seed % 3 != 0 {
            pool.free(handle).unwrap();
        }
    }
    let (seed, handle) = held[300];
    let mapped = pool.map(handle).unwrap();
    pool.compact();
    frames.compact();
    let mut read = vec![0; 2000];
    mapped.read(&mut read);
    assert_eq!(read, pattern(seed, 2000));
    drop(mapped);
    assert!(pool.stats().frames_migrated > 0);
    assert!(held.iter().filter(|h| h.0 % 3 == 0).all(|&(s, h)| holds(&pool, h, s, 2000)));
    pool.validate();
}

#[test]
fn every_frame_can_be_moved_away() {
    let frames = frames(8);
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    let held: Vec<_> = (0..3000u64)
        .map(|seed| (seed, 50 + (seed as usize * 37) % 3900))
        .map_while(|(seed, size)| {
            let handle = pool.alloc(size).ok()?;
            pool.map(handle).unwrap().write(&pattern(seed, size));
            Some((seed, size, handle))
        })
        .take(if cfg!(miri) { 100 } else { 900 })
        .collect();
    // Every block can be allocated whole, one after the other.
    for block in 0..8 {
        let run = frames.alloc_contig(512, 512).unwrap();
        assert_eq!(run.range().count(), 512, "{block}");
        frames.free_contig(run).unwrap();
        frames.compact();
    }
    assert!(held.iter().all(|&(seed, size, handle)| holds(&pool, handle, seed, size)));
    pool.validate();
    frames.validate().unwrap();
}

/// The callbacks are public, so any code can register the pool as the owner of frames elsewhere.
#[test]
fn frames_of_another_pool_change_nothing() {
    let (ours, theirs) = (frames(2), frames(2));
    let pool = ZsPool::new(&ours, ZsConfig::default()).unwrap();
    let held: Vec<_> = (0..300).map(|seed| (seed, put(&pool, seed, 3000))).collect();
    let weak = std::sync::Arc::downgrade(&pool);
    let impostor = Owner::register(&theirs, weak).unwrap();
    // Each claims to be the first frame of the first zspage, and one has its number.
    let mut others: Vec<_> =
        std::iter::from_fn(|| impostor.alloc(Gfp::MOVABLE.emergency(), 0).ok()).collect();
    others.sort();
    for frame in others.split_off(512) {
        impostor.free(frame).unwrap();
    }
    // The lower block is full of them, so only the upper one can be allocated.
    let run = theirs.alloc_contig(512, 512).unwrap();
    assert_eq!(run.range().start.index(), 512);
    assert!(theirs.events().isolated >= 512 && theirs.events().moved == 0);
    assert!(held.iter().all(|&(seed, handle)| holds(&pool, handle, seed, 3000)));
    pool.validate();
    ours.validate().unwrap();
}

#[test]
fn frames_of_an_unmovable_pool_do_not_move() {
    let frames = frames(2);
    let pool = ZsPool::new(&frames, ZsConfig { movable: false, limit: None }).unwrap();
    let held: Vec<_> = (0..100).map(|seed| put(&pool, seed, 3000)).collect();
    frames.compact();
    assert!(frames.alloc(Order::MAX, Gfp::UNMOVABLE).is_err());
    assert_eq!(pool.stats().frames_migrated, 0);
    held.into_iter().for_each(|h| pool.free(h).unwrap());
    drop(pool);
    assert_eq!(frames.validate().unwrap().used, 0);
}

#[test]
fn dropping_the_pool_frees_its_frames() {
    let frames = frames(1);
    let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
    (0..50).for_each(|seed| {
        put(&pool, seed, 999);
    });
    assert!(frames.validate().unwrap().used > 0);
    drop(pool);
    assert_eq!(frames.validate().unwrap().used, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Free(usize),
    Check(usize),
    Compact,
    Shrink(u64),
    CompactFrames,
    Contig(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1..=MAX_SIZE).prop_map(Step::Alloc),
        20 => (1..300usize).prop_map(Step::Alloc),
        24 => any::<usize>().prop_map(Step::Free),
        6 => any::<usize>().prop_map(Step::Check),
        2 => Just(Step::Compact),
        1 => (0..20u64).prop_map(Step::Shrink),
        1 => Just(Step::CompactFrames),
        1 => (1..600u32).prop_map(Step::Contig),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 40 }, ..Default::default() })]

    #[test]
    fn objects_keep_their_bytes(
        steps in proptest::collection::vec(step(), 1..if cfg!(miri) { 30 } else { 400 }),
    ) {
        let frames = frames(2);
        let pool = ZsPool::new(&frames, ZsConfig::default()).unwrap();
        let mut model: Vec<(u64, usize, Handle)> = Vec::new();
        for (seed, step) in (1u64..).zip(steps) {
            match step {
                Step::Alloc(size) => match pool.alloc(size) {
                    Ok(handle) => {
                        pool.map(handle).unwrap().write(&pattern(seed, size));
                        model.push((seed, size, handle));
                    }
                    Err(error) => prop_assert!(matches!(error, ZsError::Frames(_))),
                },
                Step::Free(pick) if !model.is_empty() => {
                    let (seed, size, handle) = model.swap_remove(pick % model.len());
                    prop_assert!(holds(&pool, handle, seed, size));
                    pool.free(handle).unwrap();
                    prop_assert_eq!(pool.free(handle), Err(ZsError::Freed));
                }
                Step::Check(pick) if !model.is_empty() => {
                    let (seed, size, handle) = model[pick % model.len()];
                    prop_assert!(holds(&pool, handle, seed, size));
                }
                Step::Free(_) | Step::Check(_) => {}
                Step::Compact => drop(pool.compact()),
                Step::Shrink(frames) => drop(pool.shrink(frames)),
                Step::CompactFrames => drop(frames.compact()),
                Step::Contig(count) => {
                    if let Ok(run) = frames.alloc_contig(count, 1) {
                        frames.free_contig(run).unwrap();
                    }
                }
            }
            prop_assert_eq!(pool.stats().objects, model.len() as u64);
        }
        pool.validate();
        prop_assert_eq!(u64::from(frames.validate().unwrap().used), pool.stats().frames);
        for (seed, size, handle) in model {
            prop_assert!(holds(&pool, handle, seed, size));
            pool.free(handle).unwrap();
        }
        pool.compact();
        prop_assert_eq!(frames.validate().unwrap().used, 0);
    }
}
