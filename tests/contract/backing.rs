// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory of every kind keeps its contents, frees what it reports as freed, and reads as zero
//! there.

use mm::backing::{Backing, BackingKind, Discarded};
use mm::units::{BLOCK_BYTES, Bytes, HostRange, PAGE_BYTES};

const BLOCKS: usize = 6;

/// Some memory of one kind, and its contents.
struct Memory(Box<dyn Backing>);

impl Memory {
    /// Nothing where the host has set no huge pages aside for the kind.
    fn reserve(kind: BackingKind) -> Option<Self> {
        match kind.reserve(Bytes((BLOCKS * BLOCK_BYTES) as u64)) {
            Ok(backing) => Some(Self(backing)),
            Err(error) => {
                assert_eq!(kind, BackingKind::Hugetlb2M, "{error}");
                eprintln!("not run: {error}");
                None
            }
        }
    }

    fn all(&self) -> HostRange {
        self.0.mapping().range()
    }

    fn block(&self, nth: usize) -> HostRange {
        self.all().slice(nth * BLOCK_BYTES, BLOCK_BYTES).unwrap()
    }

    /// The first word of the page at `addr`.
    fn word(&self, addr: usize) -> *mut u64 {
        assert!(self.all().covers(&HostRange::new(addr, PAGE_BYTES).unwrap()));
        std::ptr::with_exposed_provenance_mut(addr)
    }

    /// Writes to each page of `range` which one it is.
    fn write(&self, range: HostRange) {
        for addr in (range.addr()..range.end()).step_by(PAGE_BYTES) {
            // SAFETY: in the mapping, which is writable and ours alone, and aligned to a page.
            unsafe { self.word(addr).write_volatile(addr as u64) };
        }
    }

    /// Pages of `range` that still hold what was written, and pages that read as zero.
    fn look(&self, range: HostRange) -> (usize, usize) {
        let (mut kept, mut zero) = (0, 0);
        for addr in (range.addr()..range.end()).step_by(PAGE_BYTES) {
            // SAFETY: in the mapping, which is readable and ours alone, and aligned to a page.
            let word = unsafe { self.word(addr).read_volatile() };
            kept += usize::from(word == addr as u64);
            zero += usize::from(word == 0);
        }
        (kept, zero)
    }

    fn resident(&self, range: HostRange) -> Bytes {
        self.0.residency(range).unwrap().resident
    }
}

fn pages(range: HostRange) -> usize {
    range.len() / PAGE_BYTES
}

fn nothing_is_held_at_first(memory: &Memory) {
    assert_eq!(memory.all().len(), BLOCKS * BLOCK_BYTES);
    assert!(memory.all().addr().is_multiple_of(BLOCK_BYTES));
    assert_eq!(memory.resident(memory.all()), Bytes(0));
    assert_eq!(memory.0.discard(&[]).unwrap(), Discarded::default());
}

fn populated_memory_is_there_and_keeps_its_contents(memory: &Memory) {
    let block = memory.block(0);
    memory.0.populate(block).unwrap();
    assert_eq!(memory.resident(block), block.bytes());
    assert_eq!(memory.look(block), (0, pages(block)));
    memory.write(block);
    memory.0.populate(block).unwrap();
    assert_eq!(memory.look(block), (pages(block), 0));
}

fn a_block_goes_back_whole_and_its_neighbours_stay(memory: &Memory) {
    memory.write(memory.all());
    let before = memory.resident(memory.all());
    assert_eq!(before, memory.all().bytes());
    let block = memory.block(2);
    let done = memory.0.discard(&[block]).unwrap();
    let whole = block.bytes();
    assert_eq!((done.asked, done.freed, done.held), (whole, whole, Bytes(0)));
    assert_eq!(memory.resident(memory.all()), before.saturating_sub(whole));
    assert_eq!(memory.look(memory.block(1)), (pages(block), 0));
    assert_eq!(memory.look(memory.block(3)), (pages(block), 0));
    // A second discard frees nothing, until the memory is touched.
    assert_eq!(memory.0.discard(&[block]).unwrap().freed, Bytes(0));
    assert_eq!(memory.look(block), (0, pages(block)));
}

/// Also what begins in one block and ends in another.
fn parts_go_back_as_far_as_is_said(memory: &Memory) {
    memory.write(memory.all());
    let part = |page: usize, count: usize| {
        memory.all().slice(page * PAGE_BYTES, count * PAGE_BYTES).unwrap()
    };
    let parts = [part(3, 1), part(500, 20), part(1024, 512)];
    let before = memory.resident(memory.all());
    let done = memory.0.discard(&parts).unwrap();
    assert_eq!(
        done.asked,
        parts.iter().map(HostRange::bytes).fold(Bytes(0), Bytes::saturating_add)
    );
    assert_eq!(done.asked, done.freed.saturating_add(done.held));
    assert!(done.freed >= parts[2].bytes(), "{done:?}");
    assert_eq!(memory.resident(memory.all()), before.saturating_sub(done.freed));
    let (kept, zero) = memory.look(memory.all());
    assert_eq!(kept + zero, pages(memory.all()));
    assert!(kept >= pages(memory.all()) - 533, "{kept} pages were kept, {zero} are zero");
    assert!(zero >= 512);
}

/// Whether the host has a huge page for it or not.
fn collapsing_changes_no_byte(memory: &Memory) {
    memory.write(memory.all());
    let block = memory.block(4);
    let done = memory.0.collapse(block);
    assert_eq!(memory.look(memory.all()), (pages(memory.all()), 0));
    let huge = memory.0.residency(block).unwrap().huge;
    if done.is_ok() && memory.0.may_be_huge() {
        assert!(huge.is_none_or(|huge| huge == block.bytes()), "{huge:?}");
    }
    if !memory.0.may_be_huge() {
        assert!(huge.is_none_or(|huge| huge == Bytes(0)), "{huge:?}");
    }
    memory.0.allow_huge(block, false).unwrap();
    memory.0.allow_huge(block, true).unwrap();
    assert_eq!(memory.look(block), (pages(block), 0));
}

fn a_walk_finds_what_is_resident(memory: &Memory) {
    memory.write(memory.all());
    memory.0.discard(&[memory.block(0), memory.block(3)]).unwrap();
    let (mut end, mut found) = (0, Bytes(0));
    memory
        .0
        .walk(memory.all(), &mut |run, _| {
            assert!(memory.all().covers(&run) && run.addr() >= end, "{run} after {end:#x}");
            assert!(!run.covers(&memory.block(0)) && !run.covers(&memory.block(3)), "{run}");
            end = run.end();
            found = found.saturating_add(run.bytes());
        })
        .unwrap();
    assert_eq!(found, memory.resident(memory.all()));
    assert_eq!(found, Bytes(4 * BLOCK_BYTES as u64));
}

fn suite(kind: BackingKind) {
    let checks: [fn(&Memory); 6] = [
        nothing_is_held_at_first,
        populated_memory_is_there_and_keeps_its_contents,
        a_block_goes_back_whole_and_its_neighbours_stay,
        parts_go_back_as_far_as_is_said,
        collapsing_changes_no_byte,
        a_walk_finds_what_is_resident,
    ];
    for check in checks {
        // Each on fresh memory.
        let Some(memory) = Memory::reserve(kind) else { return };
        check(&memory);
    }
}

#[test]
fn huge_pages_where_there_are_any() {
    suite(BackingKind::Thp);
}

#[test]
fn small_pages() {
    suite(BackingKind::Small);
}

#[test]
fn a_file_in_memory() {
    suite(BackingKind::Memfd);
}

#[test]
fn huge_pages_set_aside() {
    suite(BackingKind::Hugetlb2M);
}
