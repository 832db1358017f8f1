// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ranges and their edges.

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;

fn range(start: u64, end: u64) -> GuestRange {
    GuestRange::from_bounds(Pfn(start), Pfn(end)).unwrap()
}

#[test]
fn a_range_is_never_empty_and_ends_at_an_address() {
    assert_eq!(GuestRange::new(Pfn(1), Pages(0)), None);
    assert_eq!(GuestRange::new(Pfn(u64::MAX), Pages(1)), None);
    assert_eq!(GuestRange::new(Pfn(1), Pages(u64::MAX >> PAGE_SHIFT)), None);
    assert_eq!(GuestRange::from_bounds(Pfn(3), Pfn(2)), None);
}

#[test]
fn partial_pages_at_the_edges_are_left_out() {
    let inside = |addr, len| GuestRange::inside_bytes(GuestAddress(addr), Bytes(len));
    assert_eq!(inside(0x1001, 0x2000), Some(range(2, 3)));
    assert_eq!(inside(0x1000, 0x2fff), Some(range(1, 3)));
    assert_eq!(inside(0x1001, 0x1ffe), None);
    assert_eq!(inside(u64::MAX - 10, 100), None);
}

#[test]
fn blocks_of_a_range() {
    let ids = |r: GuestRange| r.whole_blocks().map(|b| b.0).collect::<Vec<_>>();
    assert_eq!(ids(range(511, 1536)), [1, 2]);
    assert_eq!(ids(range(1, 511)), [0; 0]);
    assert_eq!(range(511, 513).touched_blocks().map(|b| b.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn host_ranges_are_whole_pages() {
    assert_eq!(HostRange::new(0x1000, 1), None);
    assert_eq!(HostRange::new(1, 0x1000), None);
    assert_eq!(HostRange::new(usize::MAX - 0xfff, 0x1000), None);
    let all = HostRange::new(0x1000, 0x3000).unwrap();
    assert_eq!(all.slice(0x1000, 0x2000), HostRange::new(0x2000, 0x2000));
    assert_eq!(all.slice(0x1000, 0x3000), None);
}

proptest! {
    #[test]
    fn intersection_is_what_both_contain(
        a in 0u64..2000, la in 1u64..2000, b in 0u64..2000, lb in 1u64..2000, p in 0u64..4000,
    ) {
        let (x, y) = (range(a, a + la), range(b, b + lb));
        let both = x.intersection(&y);
        prop_assert_eq!(both, y.intersection(&x));
        let inside = both.is_some_and(|r| r.contains(Pfn(p)));
        prop_assert_eq!(inside, x.contains(Pfn(p)) && y.contains(Pfn(p)));
    }
}
