// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest RAM on the backings that any host has.

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::*;
use crate::layout::HOLE_END;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Pfn};

fn ram(mib: u64) -> GuestRam {
    let layout = MemoryLayout::new(Bytes::from_mib(mib).unwrap(), Bytes(0)).unwrap();
    GuestRam::new(layout, BackingKind::Thp).unwrap()
}

fn range(start: u64, pages: u64) -> GuestRange {
    GuestRange::new(Pfn(start), Pages(pages)).unwrap()
}

#[test]
fn memory_is_aligned_and_absent_until_touched() {
    let ram = ram(16);
    assert!(ram.regions()[0].host().addr().is_multiple_of(BLOCK_BYTES));
    assert_eq!(ram.residency().unwrap().resident, Bytes(0));
    ram.memory().write_obj(7u64, GuestAddress(0x5000)).unwrap();
    assert!(ram.residency().unwrap().resident > Bytes(0));
}

#[test]
fn discarded_pages_read_as_zero_and_others_stay() {
    let ram = ram(16);
    let mem = ram.memory();
    for page in 0..1024u64 {
        mem.write_obj(page + 1, GuestAddress(page << 12)).unwrap();
    }
    let done = ram.discard(&[range(3, 1), range(10, 600)]).unwrap();
    assert_eq!(done.asked, Bytes(601 << 12));
    assert_eq!(done.freed, Bytes(601 << 12));
    for page in 0..1024u64 {
        let gone = page == 3 || (10..610).contains(&page);
        let value: u64 = mem.read_obj(GuestAddress(page << 12)).unwrap();
        assert_eq!(value, if gone { 0 } else { page + 1 });
    }
}

/// Where the host gives huge pages, cutting one leaves small pages, not a hidden huge page.
#[test]
fn a_cut_huge_page_is_split() {
    let ram = ram(8);
    let mem = ram.memory();
    // Not zero: a kernel from 6.12 on shares the zero pages of what it splits.
    for page in 0..2048u64 {
        mem.write_obj(page + 1, GuestAddress(page << 12)).unwrap();
    }
    let before = ram.residency().unwrap();
    assert_eq!(before.resident, Bytes(8 << 20));
    if before.huge != Some(before.resident) {
        eprintln!("this host gives no huge pages now: {before:?}");
        return;
    }
    // Page 3 of the first block; the end of the second, and all of the third.
    let done = ram.discard(&[range(3, 1), range(1020, 516)]).unwrap();
    assert_eq!((done.splits, done.held), (2, Bytes(0)));
    assert_eq!(done.freed, Bytes(517 << 12));
    let after = ram.residency().unwrap();
    assert_eq!(after.resident, Bytes((2048 - 517) << 12));
    assert_eq!(after.huge, Some(Bytes(BLOCK_SIZE)));
}

#[test]
fn memory_above_the_hole_is_reached() {
    let ram = ram(4096);
    let high = HOLE_END;
    ram.memory().write_obj(1u8, high).unwrap();
    let page = GuestRange::from_bytes(high, Bytes(4096)).unwrap();
    assert_eq!(ram.discard(&[page]).unwrap().freed, Bytes(4096));
    assert_eq!(ram.memory().read_obj::<u8>(high).unwrap(), 0);
}

#[test]
fn rejects_ranges_outside_ram_before_any_discard() {
    let ram = ram(4096);
    ram.memory().write_obj(9u8, GuestAddress(0)).unwrap();
    let across_the_hole = range((3 << 18) - 1, 2);
    let refused = ram.discard(&[range(0, 1), across_the_hole]);
    assert!(matches!(refused, Err(GuestRamError::NotRam(r)) if r == across_the_hole));
    assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0)).unwrap(), 9);
    assert!(ram.residency_of(range(1 << 40, 1)).is_err());
}

#[test]
fn memory_stays_mapped_while_a_caller_holds_it() {
    let ram = ram(4);
    let kept = Arc::clone(ram.memory());
    kept.write_obj(5u8, GuestAddress(0)).unwrap();
    drop(ram);
    assert_eq!(kept.read_obj::<u8>(GuestAddress(0)).unwrap(), 5);
    assert_eq!(kept.num_regions(), 1);
}
