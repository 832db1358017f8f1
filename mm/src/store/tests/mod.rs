// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the store: every form of page, histories against a map, threads, and migration.
//!
//! - `repack.rs` compressing again with a second codec

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::frames::{FrameId, FramePool, FrameRange, PoolConfig, Region};
use crate::units::{BLOCK_BYTES, PAGE_BYTES};
use crate::zsmalloc::{ZsConfig, ZsError};

mod repack;

fn frames(blocks: usize) -> Arc<FramePool> {
    let cma = vec![FrameRange::new(FrameId::new(0), 512).unwrap()];
    let region = Region::anonymous(blocks * BLOCK_BYTES).unwrap();
    FramePool::new(region, PoolConfig { cma, ..Default::default() }).unwrap()
}

fn store(frames: &Arc<FramePool>, codec: Box<dyn Codec>) -> Store {
    let config = StoreConfig { capacity: 10_000, zs: ZsConfig::default() };
    Store::new(frames, codec, config).unwrap()
}

fn codecs() -> [Box<dyn Codec>; 2] {
    [Box::new(Lz4), Box::new(Zstd::default())]
}

/// A page that compresses to about `noise` bytes; 0 gives a same-filled one.
fn page(seed: u64, noise: usize) -> Page {
    let mut page = [0; PAGE_BYTES];
    page.as_chunks_mut().0.fill(seed.to_ne_bytes());
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in page.iter_mut().take(noise) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *byte = x as u8;
    }
    page
}

#[test]
fn each_form_of_page_comes_back() {
    for codec in codecs() {
        let frames = frames(2);
        let store = store(&frames, codec);
        let forms = [0, 10, 500, 2000, 3500, 4000, PAGE_BYTES];
        for (key, &noise) in (0..).zip(&forms) {
            store.put(Key(key), &page(key.into(), noise)).unwrap();
        }
        let mut out = [1; PAGE_BYTES];
        for (key, &noise) in (0..).zip(&forms) {
            store.get(Key(key), &mut out).unwrap();
            assert!(out == page(key.into(), noise), "{} with {noise}", store.zs().stats().objects);
        }
        let stat = store.mm_stat();
        assert_eq!(stat.orig_data_size, 7 * 4096);
        assert_eq!(stat.same_pages, 1);
        assert_eq!((stat.huge_pages, stat.huge_pages_since), (2, 2));
        assert!(stat.compr_data_size < 15_500, "{stat:?}");
        assert_eq!(stat.mem_used_total, store.zs().stats().frames * 4096);
        for key in 0..7 {
            assert!(store.remove(Key(key)).unwrap());
            assert!(!store.remove(Key(key)).unwrap());
        }
        store.compact();
        let stat = store.mm_stat();
        assert_eq!((stat.orig_data_size, stat.compr_data_size, stat.mem_used_total), (0, 0, 0));
        assert_eq!(frames.validate().unwrap().used, 0);
    }
}

#[test]
fn rejects_invalid_keys_absent_pages_and_a_full_pool() {
    let frames = frames(1);
    let config = StoreConfig { capacity: 8, zs: ZsConfig { limit: Some(4), ..Default::default() } };
    let store = Store::new(&frames, Box::new(Lz4), config).unwrap();
    let noise = |key| page(key, PAGE_BYTES);
    let mut out = [0; PAGE_BYTES];
    assert!(matches!(store.get(Key(0), &mut out), Err(StoreError::Absent(0))));
    assert!(matches!(store.put(Key(8), &noise(1)), Err(StoreError::OutOfRange { key: 8, .. })));
    assert!(matches!(store.take(Key(u32::MAX), &mut out), Err(StoreError::OutOfRange { .. })));
    let pages: Vec<Page> = (0..8).map(noise).collect();
    let (error, done) = store.put_batch((0..).map(Key).zip(&pages)).unwrap_err();
    assert!(matches!(error, StoreError::NoRoom(ZsError::Limit(4))));
    assert_eq!(done, 4);
    // A page that cannot be replaced stays what it was.
    assert!(store.put(Key(2), &noise(77)).is_err());
    store.get(Key(2), &mut out).unwrap();
    assert!(out == pages[2]);
    store.take(Key(2), &mut out).unwrap();
    assert!(out == pages[2] && !store.contains(Key(2)).unwrap());
    assert_eq!(store.mm_stat().mem_limit, 4 * 4096);
}

#[test]
fn batches_are_read_into_the_given_pages() {
    let frames = frames(2);
    let store = store(&frames, Box::new(Zstd { level: 1 }));
    let pages: Vec<Page> = (0..64).map(|k| page(k, (k as usize * 61) % 4096)).collect();
    store.put_batch((100..).map(Key).zip(&pages)).unwrap();
    let mut out = vec![[0; PAGE_BYTES]; 64];
    store.get_batch((100..).map(Key).zip(&mut out)).unwrap();
    assert!(out == pages);
    let (error, done) = store.get_batch((160..).map(Key).zip(&mut out)).unwrap_err();
    assert!(matches!(error, StoreError::Absent(164)));
    assert_eq!(done, 4);
}

#[test]
fn a_full_store_gives_cma_back_and_keeps_its_pages() {
    let frames = frames(4);
    let store = store(&frames, Box::new(Lz4));
    let mut stored = 0;
    while store.put(Key(stored), &page(stored.into(), 1800)).is_ok() {
        stored += 1;
    }
    assert!(frames.accounting().free_cma < 512 / 100 + 1, "{:?}", frames.accounting());
    // Make room for what lies in the area, and take it.
    for key in (0..stored).filter(|k| k % 3 == 0) {
        store.remove(Key(key)).unwrap();
    }
    store.compact();
    let run = frames.alloc_cma(0, 512, 1).unwrap();
    let mut out = [0; PAGE_BYTES];
    for key in (0..stored).filter(|k| k % 3 != 0) {
        store.get(Key(key), &mut out).unwrap();
        assert!(out == page(key.into(), 1800), "key {key}");
    }
    frames.free_contig(run).unwrap();
}

#[test]
fn threads_read_whole_pages_during_migration() {
    let frames = frames(6);
    let store = store(&frames, Box::new(Lz4));
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for thread in 0..3u64 {
            let (store, stop) = (&store, &stop);
            s.spawn(move || {
                let mut out = [0; PAGE_BYTES];
                for round in 0..3000u64 {
                    let mixed = round.wrapping_mul(0x9e37_79b9) + thread * 77;
                    // Keys are shared: the page must be one that some thread wrote.
                    let key = Key((mixed >> 3) as u32 % 200);
                    match mixed % 4 {
                        0 | 1 => {
                            let noise = (mixed >> 11) as usize % 4097;
                            let mut page = page(mixed, noise);
                            page[..8].copy_from_slice(&mixed.to_ne_bytes());
                            page[8..16].copy_from_slice(&(noise as u64).to_ne_bytes());
                            store.put(key, &page).unwrap();
                        }
                        2 if store.get(key, &mut out).is_ok() => {
                            let seed = u64::from_ne_bytes(out[..8].try_into().unwrap());
                            let noise = u64::from_ne_bytes(out[8..16].try_into().unwrap());
                            let mut want = page(seed, noise as usize);
                            want[..16].copy_from_slice(&out[..16]);
                            assert!(out == want, "a page of no writer");
                        }
                        3 => drop(store.remove(key).unwrap()),
                        _ => {}
                    }
                }
                stop.store(true, SeqCst);
            });
        }
        s.spawn(|| {
            while !stop.load(SeqCst) {
                store.compact();
                frames.compact();
                if let Ok(run) = frames.alloc_cma(0, 512, 1) {
                    frames.free_contig(run).unwrap();
                }
            }
        });
    });
    store.zs().validate();
    frames.validate().unwrap();
}

/// LZ4 that stops at pages which begin with a number that is not let through.
#[derive(Default)]
struct Gates {
    /// Numbers whose pages are being compressed, and those let through.
    state: Mutex<(BTreeSet<u8>, BTreeSet<u8>)>,
    changed: Condvar,
}

impl Gates {
    fn pass(&self, gate: u8) {
        let mut state = self.state.lock().unwrap();
        state.0.insert(gate);
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !open.contains(&gate)).unwrap());
    }

    fn wait_for(&self, gate: u8) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |(inside, _)| !inside.contains(&gate)).unwrap());
    }

    fn open(&self, gate: u8) {
        self.state.lock().unwrap().1.insert(gate);
        self.changed.notify_all();
    }
}

struct Gated(Arc<Gates>);
struct GatedWorker(Arc<Gates>, Box<dyn CodecWorker>);

impl Codec for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn worker(&self, most: usize) -> Result<Box<dyn CodecWorker>, CodecError> {
        Ok(Box::new(GatedWorker(Arc::clone(&self.0), Lz4.worker(most)?)))
    }
}

impl CodecWorker for GatedWorker {
    fn compress(&mut self, page: &[u8]) -> Option<&[u8]> {
        self.0.pass(page[0]);
        self.1.compress(page)
    }

    fn decompress(&mut self, data: &[u8], page: &mut [u8]) -> Result<(), CodecError> {
        self.1.decompress(data, page)
    }
}

/// A reader that finds every codec worker in use must not hold the page that a writer wants: that
/// writer has one of the workers.
#[test]
fn readers_that_wait_for_a_worker_hold_no_page() {
    let gates = Arc::new(Gates::default());
    let frames = frames(2);
    let store = &store(&frames, Box::new(Gated(Arc::clone(&gates))));
    let page = |gate| {
        let mut page = page(1, 500);
        page[0] = gate;
        page
    };
    gates.open(0);
    store.put(Key(0), &page(0)).unwrap();
    // One writer for each worker, the last of them of the page that is read.
    let writers = u8::try_from(std::thread::available_parallelism().unwrap().get() + 1).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let finished = std::thread::scope(|s| {
        for gate in 1..writers {
            s.spawn(move || store.put(Key(gate.into()), &page(gate)).unwrap());
            gates.wait_for(gate);
        }
        s.spawn(move || {
            store.put(Key(0), &page(writers)).unwrap();
            done.send(()).unwrap();
        });
        gates.wait_for(writers);
        s.spawn(|| store.get(Key(0), &mut [0; PAGE_BYTES]).unwrap());
        // Time for the reader to come as far as it can; that it does is not needed to pass.
        std::thread::sleep(Duration::from_millis(50));
        gates.open(writers);
        let finished = is_done.recv_timeout(Duration::from_secs(30));
        (1..writers).for_each(|gate| gates.open(gate));
        finished
    });
    assert!(finished.is_ok(), "the writer waits for the reader, which waits for a worker");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..Default::default() })]

    #[test]
    fn is_a_map_of_pages(
        steps in proptest::collection::vec((0..5u8, 0..40u32, 0..=PAGE_BYTES), 1..150),
        zstd: bool,
    ) {
        let frames = frames(2);
        let [lz4, zstandard] = codecs();
        let store = store(&frames, if zstd { zstandard } else { lz4 });
        let mut model = BTreeMap::new();
        let mut out = [0; PAGE_BYTES];
        for (seed, (what, key, noise)) in (0u64..).zip(steps) {
            match what {
                0 | 1 => {
                    store.put(Key(key), &page(seed, noise)).unwrap();
                    model.insert(key, (seed, noise));
                }
                2 => prop_assert_eq!(store.remove(Key(key)).unwrap(), model.remove(&key).is_some()),
                3 => prop_assert_eq!(store.take(Key(key), &mut out).is_ok(), model.remove(&key).is_some()),
                _ => drop(store.compact()),
            }
            prop_assert_eq!(store.mm_stat().orig_data_size, model.len() as u64 * 4096);
        }
        for (key, (seed, noise)) in model {
            store.get(Key(key), &mut out).unwrap();
            prop_assert!(out == page(seed, noise));
        }
        store.zs().validate();
    }
}
