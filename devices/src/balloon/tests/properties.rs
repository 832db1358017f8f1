// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of requests, valid or not: pages that the guest has not given up keep their
//! contents, and the ledger equals a plain set of page numbers.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;

use mm::units::BlockId;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::super::BlockResult;
use super::super::protocol::{EvacuationAnswer, EvacuationRequest};
use super::super::roles::BalloonQueue;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Inflate(Vec<u32>),
    Deflate(Vec<u32>),
    Blocks { inflate: bool, blocks: Vec<u64> },
    Report { start: u64, pages: u64 },
    Hint { start: u64, pages: u64, current: bool },
    Evacuate { blocks: Vec<u64>, willing: u8, forge: bool },
    Target(u64),
    Wait,
    Settle,
    Reset,
}

fn pfns() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        // Runs, which fill blocks up.
        (0u32..3500, 1u32..700).prop_map(|(start, len)| (start..start + len).collect()),
        // Single pages, mostly RAM that the test watches.
        prop::collection::vec(prop_oneof![0u32..3500, 8180u32..8990, any::<u32>()], 0..20),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => pfns().prop_map(Op::Inflate),
        4 => pfns().prop_map(Op::Deflate),
        3 => (any::<bool>(), prop::collection::vec(0u64..20, 1..4))
            .prop_map(|(inflate, blocks)| Op::Blocks { inflate, blocks }),
        1 => (0u64..3000, 1u64..600).prop_map(|(start, pages)| Op::Report { start, pages }),
        1 => (0u64..3000, 1u64..600, any::<bool>())
            .prop_map(|(start, pages, current)| Op::Hint { start, pages, current }),
        2 => (prop::collection::vec(0u64..20, 0..6), any::<u8>(), any::<bool>())
            .prop_map(|(blocks, willing, forge)| Op::Evacuate { blocks, willing, forge }),
        1 => (0u64..4000).prop_map(Op::Target),
        2 => Just(Op::Wait),
        1 => Just(Op::Settle),
        1 => Just(Op::Reset),
    ]
}

/// The driver's own block is not the balloon's to play with.
fn is_fair(pfn: u64) -> bool {
    !(7 * 512..8 * 512).contains(&pfn)
}

fn is_ram(pfn: u64) -> bool {
    RAM.iter().any(|(start, pages)| (*start..start + pages).contains(&pfn))
}

struct Model {
    rig: Rig,
    ballooned: BTreeSet<u64>,
    /// Pages that hold what the guest wrote: their own number and one.
    written: BTreeSet<u64>,
}

impl Model {
    fn take(&mut self, pfns: impl Iterator<Item = u64>) {
        for pfn in pfns.filter(|pfn| is_ram(*pfn)) {
            self.ballooned.insert(pfn);
            self.written.remove(&pfn);
        }
    }

    fn give(&mut self, pfns: impl Iterator<Item = u64>) {
        for pfn in pfns {
            if self.ballooned.remove(&pfn) {
                self.rig.write_page(pfn, pfn + 1);
                self.written.insert(pfn);
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Inflate(pfns) => {
                let pfns = pfns.into_iter().filter(|pfn| is_fair((*pfn).into()));
                let pfns: Vec<u32> = pfns.collect();
                self.rig.inflate(pfns.iter().copied());
                self.take(pfns.into_iter().map(u64::from));
            }
            Op::Deflate(pfns) => {
                self.rig.deflate(pfns.iter().copied());
                self.give(pfns.into_iter().map(u64::from));
            }
            Op::Blocks { inflate, mut blocks } => {
                blocks.retain(|block| *block != 7);
                if blocks.is_empty() {
                    return;
                }
                let pages = |blocks: &[u64]| -> Vec<u64> {
                    blocks.iter().flat_map(|block| block * 512..block * 512 + 512).collect()
                };
                let pages = pages(&blocks);
                let once = blocks.iter().collect::<BTreeSet<_>>().len() == blocks.len();
                let expected = if !once || !pages.iter().all(|pfn| is_ram(*pfn)) {
                    BAD_BLOCK
                } else if pages.iter().any(|pfn| self.ballooned.contains(pfn) == inflate) {
                    BAD_STATE
                } else {
                    OK
                };
                let status = match inflate {
                    true => self.rig.inflate_blocks(&blocks),
                    false => self.rig.deflate_blocks(&blocks),
                };
                assert_eq!(status, expected);
                match (status, inflate) {
                    (OK, true) => self.take(pages.into_iter()),
                    (OK, false) => self.give(pages.into_iter()),
                    _ => {}
                }
            }
            Op::Report { start, pages } => {
                let queue = self.rig.queue(BalloonQueue::Reports);
                self.name_free(queue, start, pages, true);
            }
            Op::Hint { start, pages, current } => {
                let queue = self.rig.queue(BalloonQueue::Hints);
                self.rig.balloon().start_hinting(true).unwrap();
                let command = self.rig.driver.config(8) + u32::from(!current);
                self.rig.send_bytes(queue, &command.to_le_bytes());
                self.name_free(queue, start, pages, current);
                self.rig.send_bytes(queue, &0u32.to_le_bytes());
            }
            Op::Evacuate { mut blocks, willing, forge } => {
                blocks.retain(|block| *block != 7);
                self.evacuate(&blocks, willing, forge);
            }
            Op::Target(pages) => self.rig.balloon().set_target(Pages(pages)).unwrap(),
            Op::Wait => {
                let mut balloon = self.rig.balloon();
                balloon.core.pool.tick();
                balloon.on_timer();
            }
            Op::Settle => self.rig.settle(),
            Op::Reset => {
                self.rig.driver.probe(EVERYTHING, ALL_QUEUES);
                // All of it is the guest's again.
                let all: Vec<u64> = self.ballooned.iter().copied().collect();
                self.give(all.into_iter());
            }
        }
    }

    /// Names pages on one of the queues of free pages; the device discards them if the request is
    /// valid.
    fn name_free(&mut self, queue: u16, start: u64, pages: u64, believed: bool) {
        let pages = pages.min(7 * 512 - start);
        let free =
            MockDescriptor::writable(GuestAddress(start * PAGE_SIZE), (pages * PAGE_SIZE) as u32);
        self.rig.driver.send(queue, &[free]);
        for pfn in (start..start + pages).filter(|_| believed) {
            self.written.remove(&pfn);
        }
    }

    /// The host asks for `blocks`; the driver gives up those whose bit in `willing` is set, as far
    /// as nothing of them is in the balloon, and answers, truly or not.
    fn evacuate(&mut self, blocks: &[u64], willing: u8, forge: bool) {
        let queue = self.rig.queue(BalloonQueue::Evacuations);
        let room = self.rig.driver.put(&[0; 24]);
        let room = MockDescriptor::writable(room, 24);
        self.post(queue, &[room]);
        let (done, report) = channel();
        let asked: Vec<BlockId> = blocks.iter().copied().map(BlockId).collect();
        let done = Box::new(move |report| done.send(report).unwrap());
        self.rig.balloon().evacuate(asked, false, Duration::from_secs(60), done).unwrap();
        let mut invalid = 0;
        while let Some((_, len)) = self.rig.driver.used(queue) {
            // Another length: a buffer of the time before, given back.
            if len == 24 {
                let raw: [u8; 24] = self.rig.mem.read_obj(GuestAddress(room.addr)).unwrap();
                let request = EvacuationRequest::read_from_bytes(&raw).unwrap();
                self.answer(queue, &request, room, willing, forge);
                invalid += u32::from(forge);
            }
        }
        let report = report.try_recv().unwrap();
        for (block, outcome) in report.outcomes {
            let pages = block.0 * 512..block.0 * 512 + 512;
            let whole = pages.into_iter().all(|pfn| self.ballooned.contains(&pfn));
            match outcome {
                BlockResult::Evacuated => assert!(whole && invalid == 0, "{block}"),
                BlockResult::Unanswered => assert!(invalid > 0, "{block}"),
                BlockResult::Busy | BlockResult::NotRam => assert!(!whole, "{block}"),
            }
        }
    }

    fn answer(
        &mut self,
        queue: u16,
        request: &EvacuationRequest,
        room: MockDescriptor,
        willing: u8,
        forge: bool,
    ) {
        let first = request.start_pfn.get() / 512;
        let mut outcomes = Vec::new();
        for block in first..first + u64::from(request.nr_blocks.get()) {
            let pages = || block * 512..block * 512 + 512;
            if willing & (1 << (block % 8)) != 0
                && !pages().any(|pfn| self.ballooned.contains(&pfn))
            {
                assert_eq!(self.rig.inflate_blocks(&[block]), OK);
                self.take(pages());
            }
            outcomes.push(u8::from(!pages().all(|pfn| self.ballooned.contains(&pfn))));
        }
        if forge {
            outcomes[0] ^= 1;
        }
        let count = |wanted| outcomes.iter().filter(|o| **o == wanted).count() as u32;
        let answer = EvacuationAnswer {
            id: request.id,
            evacuated: count(0).into(),
            // Either the first block is falsely reported as evacuated, or this count is wrong.
            busy: (count(1) + u32::from(forge && outcomes[0] == 1)).into(),
            ..EvacuationAnswer::default()
        };
        let raw = [answer.as_bytes(), &outcomes].concat();
        let at = self.rig.driver.put(&raw);
        self.post(queue, &[MockDescriptor::readable(at, raw.len() as u32), room]);
    }

    fn post(&mut self, queue: u16, chain: &[MockDescriptor]) {
        self.rig.driver.add(queue, chain);
        self.rig.driver.notify(queue);
        self.rig.driver.run();
    }

    fn check(&self) {
        self.rig.validate();
        assert_eq!(self.rig.balloon().ballooned().0 as usize, self.ballooned.len());
        for pfn in &self.written {
            assert_eq!(self.rig.page(*pfn), pfn + 1, "page {pfn:#x} lost its contents");
        }
        assert!(!self.rig.driver.needs_reset());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_the_guest_kept_is_lost(ops in prop::collection::vec(op(), 1..40), tells: bool) {
        let features = if tells { EVERYTHING } else { EVERYTHING & !feature::MUST_TELL_HOST };
        let mut model = Model {
            rig: Rig::with(features),
            ballooned: BTreeSet::new(),
            written: BTreeSet::new(),
        };
        for pfn in (0..7 * 512).chain(8192..8960) {
            model.rig.write_page(pfn, pfn + 1);
            model.written.insert(pfn);
        }
        for op in ops {
            model.apply(op);
            model.check();
        }
        model.rig.settle();
        model.check();
        prop_assert_eq!(model.rig.balloon().pending(), Pages(0));
        for pfn in &model.ballooned {
            prop_assert_eq!(model.rig.page(*pfn), 0, "page {:#x} was not given back", pfn);
        }
    }

    /// Buffers of any bytes, on any queue, in chains of any shape.
    #[test]
    fn no_buffer_makes_the_device_panic(
        buffers in prop::collection::vec(
            (0u16..7, prop::collection::vec(any::<u8>(), 0..600), 0u32..5000, any::<bool>()), 1..30
        ),
    ) {
        let mut rig = Rig::probed();
        for (queue, bytes, room, merge) in buffers {
            let mark = rig.driver.alloc(0);
            let at = rig.driver.put(&bytes);
            let readable = MockDescriptor::readable(at, bytes.len() as u32);
            let writable = MockDescriptor::writable(rig.driver.alloc(room.into()), room);
            let chain = if merge { vec![readable, writable] } else { vec![readable] };
            rig.driver.add(queue, &chain);
            rig.driver.notify(queue);
            rig.driver.run();
            while rig.driver.used(queue).is_some() {}
            rig.driver.release(mark);
            rig.validate();
        }
        rig.settle();
        rig.validate();
    }
}
