// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pager on real memory, with threads in place of a guest.
//!
//! `parking` parking and coming back · `discards` pages that are given up or must stay · `empties`
//! blocks without contents · `failures`
//! failures · `pages` single pages · `room` a host that is short · `sources` memory from a file · `cold` trials and what stays away · `staged`
//! trials of blocks that are used a little · `stress` all at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cold;
mod discards;
mod empties;
mod failures;
mod pages;
mod parking;
mod room;
mod sources;
mod staged;
mod stress;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::backing::BackingKind;
use crate::layout::MemoryLayout;
use crate::store::{Codec, Lz4, Zstd};
use crate::units::{BLOCK_SIZE, PAGE_SIZE, Pages, Pfn};

const MIB: u64 = 1 << 20;
static NEVER: AtomicBool = AtomicBool::new(false);

fn quiet(_: u64, _: u64) {}

/// A guest's memory of `mib` MiB, paged, with a pool of `pool_mib` MiB.
struct Fixture {
    ram: Arc<GuestRam>,
    paging: Paging,
    losses: Arc<AtomicU64>,
}

impl Fixture {
    fn new(mib: u64, pool_mib: u64) -> Self {
        Self::with(mib, pool_mib, BackingKind::Thp, Box::new(Lz4), Vec::new())
    }

    fn with(
        mib: u64,
        pool_mib: u64,
        kind: BackingKind,
        codec: Box<dyn Codec>,
        sources: Vec<Arc<dyn PageSource>>,
    ) -> Self {
        let layout = MemoryLayout::new(Bytes(mib * MIB), Bytes(0)).unwrap();
        let ram = Arc::new(GuestRam::new(layout, kind).unwrap());
        let second_codec: Option<Box<dyn Codec>> = Some(Box::new(Zstd { level: 3 }));
        let pool_limit = Bytes(pool_mib * MIB);
        let config = PagingConfig {
            pool_limit,
            max_mappings: 1 << 15,
            codec,
            second_codec,
            sources,
            host: None,
        };
        let losses = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&losses);
        let on_loss = Box::new(move |_: &SourceError| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let paging = Paging::start(Arc::clone(&ram), config, on_loss).expect("run as root");
        Self { ram, paging, losses }
    }

    fn pages(&self) -> u64 {
        self.ram.pages().0
    }

    /// Something that compresses and names page and version.
    fn text(page: u64, version: u64) -> Vec<u8> {
        let line = format!("page {page} version {version}; ");
        let mut text = line.repeat(PAGE_SIZE as usize / line.len() + 1).into_bytes();
        text.truncate(PAGE_SIZE as usize);
        text
    }

    fn write(&self, page: u64, version: u64) {
        let text = Self::text(page, version);
        self.ram.memory().write_slice(&text, GuestAddress(page * PAGE_SIZE)).unwrap();
    }

    fn fill(&self, version: u64) {
        (0..self.pages()).for_each(|page| self.write(page, version));
    }

    /// Whether `page` holds what [`write`](Self::write) put there.
    fn holds(&self, page: u64, version: u64) -> bool {
        let mut found = vec![0; PAGE_SIZE as usize];
        self.ram.memory().read_slice(&mut found, GuestAddress(page * PAGE_SIZE)).unwrap();
        found == Self::text(page, version)
    }

    fn is_zero(&self, page: u64) -> bool {
        let mut found = vec![1; PAGE_SIZE as usize];
        self.ram.memory().read_slice(&mut found, GuestAddress(page * PAGE_SIZE)).unwrap();
        found == [0; PAGE_SIZE as usize]
    }

    fn check(&self, version: u64) {
        let wrong: Vec<u64> = (0..self.pages()).filter(|&p| !self.holds(p, version)).collect();
        assert!(wrong.is_empty(), "{} pages are wrong, first {:?}", wrong.len(), wrong.first());
    }

    /// Words in random order that compress only a little, and the addresses that they belong to.
    fn words(&self) -> impl Iterator<Item = (GuestAddress, u64)> {
        let next = |x: &u64| {
            x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        };
        let words = std::iter::successors(Some(next(&1)), move |x| Some(next(x)));
        (0..self.pages() * PAGE_SIZE / 8)
            .zip(words)
            .map(|(word, x)| (GuestAddress(word * 8), x >> 34))
    }

    fn fill_with_words(&self) {
        self.words().for_each(|(at, word)| self.ram.memory().write_obj(word, at).unwrap());
    }

    fn check_words(&self) {
        for (at, word) in self.words() {
            let found: u64 = self.ram.memory().read_obj(at).unwrap();
            assert_eq!(found, word, "at {at:?}");
        }
    }

    fn resident(&self) -> u64 {
        self.ram.residency().unwrap().resident.0
    }

    fn park(&self) -> ParkReport {
        self.park_as(&ParkRequest::default())
    }

    fn park_as(&self, request: &ParkRequest) -> ParkReport {
        self.paging.settle();
        let report = self.paging.park(request, &NEVER, &quiet);
        self.paging.validate().unwrap();
        report
    }

    fn unpark(&self) -> UnparkReport {
        let report = self.paging.unpark(None, &NEVER, &quiet);
        self.paging.validate().unwrap();
        report
    }

    fn block(&self, nth: u64) -> GuestRange {
        range(nth * PAGES_PER_BLOCK, PAGES_PER_BLOCK)
    }

    /// Whether this host gives huge pages now; without, blocks stay.
    fn has_huge_pages(&self) -> bool {
        let found = self.ram.residency().unwrap();
        let huge = found.huge == Some(found.resident);
        if !huge {
            eprintln!("not run: this host gives no huge pages now: {found:?}");
        }
        huge
    }
}

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}
