// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source of absent pages returns each page as it was stored, any number of times, alone or in a
//! run, until `forget` is called.

use std::io::Write as _;
use std::sync::Arc;

use mm::frames::{FramePool, PoolConfig, Region};
use mm::paging::{Content, FileSource, PageSource, StoreSource, ZeroSource};
use mm::store::{Key, Lz4, Page, Store, StoreConfig, Zstd};
use mm::units::BLOCK_BYTES;
use mm::zsmalloc::ZsConfig;

const PAGES: u64 = 64;
const EMPTY: Page = [0; 4096];

/// What page `n` is to hold: text, one repeated word, noise or nothing, in turn.
fn contents(n: u64) -> Page {
    let mut page = EMPTY;
    match n % 4 {
        0 => page.iter_mut().zip(format!("page {n}; ").bytes().cycle()).for_each(|(to, b)| *to = b),
        1 => page.fill(0x5a),
        2 => {
            let mut x = n + 1;
            for byte in &mut page {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (x >> 56) as u8;
            }
        }
        _ => {}
    }
    page
}

/// A source, and what each of its pages should be.
struct Case {
    name: &'static str,
    source: Box<dyn PageSource>,
    expected: fn(u64) -> Page,
    /// Whether it can let go of pages.
    forgets: bool,
}

fn store(codec: Box<dyn mm::store::Codec>) -> Box<dyn PageSource> {
    let region = Region::anonymous(4 * BLOCK_BYTES).unwrap();
    let frames = FramePool::new(region, PoolConfig::default()).unwrap();
    let config = StoreConfig { capacity: 1 << 20, zs: ZsConfig { movable: true, limit: None } };
    let store = Store::new(&frames, codec, config).unwrap();
    for page in (0..PAGES).filter(|n| n % 4 != 3) {
        store.put(Key(page as u32), &contents(page)).unwrap();
    }
    Box::new(StoreSource::new(Arc::new(store)))
}

fn cases() -> Vec<Case> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"header").unwrap();
    (0..PAGES).for_each(|page| file.write_all(&contents(page)).unwrap());
    let of = |name, source, forgets| Case { name, source, expected: contents, forgets };
    vec![
        Case { name: "zero", source: Box::new(ZeroSource), expected: |_| EMPTY, forgets: true },
        of("store, lz4", store(Box::new(Lz4)), true),
        of("store, zstd", store(Box::new(Zstd::default())), true),
        of("file", Box::new(FileSource::new(file, 6)), false),
    ]
}

fn read(case: &Case, page: u64) -> Page {
    let mut into = EMPTY;
    match case.source.read(page, &mut into).unwrap() {
        Content::Written => into,
        Content::Zero => {
            assert_eq!(into, EMPTY, "{}: page {page} was written although it is zero", case.name);
            EMPTY
        }
    }
}

#[test]
fn pages_are_given_as_often_as_they_are_asked_for() {
    for case in cases() {
        for page in (0..PAGES).chain(0..PAGES) {
            assert!(read(&case, page) == (case.expected)(page), "{}: page {page}", case.name);
        }
    }
}

#[test]
fn a_run_is_its_pages() {
    for case in cases() {
        let mut run = vec![EMPTY; 40];
        case.source.read_run(7, &mut run).unwrap();
        for (page, found) in (7..).zip(&run) {
            assert!(*found == (case.expected)(page), "{}: page {page}", case.name);
        }
    }
}

#[test]
fn what_is_forgotten_is_zero_and_the_rest_stays() {
    for case in cases() {
        case.source.forget(10..20);
        for page in 0..PAGES {
            let gone = (10..20).contains(&page);
            if !gone || case.forgets {
                let expected = if gone { EMPTY } else { (case.expected)(page) };
                assert!(read(&case, page) == expected, "{}: page {page}", case.name);
            }
        }
    }
}

#[test]
fn several_threads_may_ask_at_once() {
    for case in cases() {
        std::thread::scope(|scope| {
            for start in 0..3 {
                let case = &case;
                scope.spawn(move || {
                    for page in (start..PAGES).chain(0..start) {
                        assert!(read(case, page) == (case.expected)(page), "{}", case.name);
                    }
                });
            }
        });
    }
}

/// A page that is not there is an error that names it, never zeroes.
#[test]
fn a_file_that_ends_early_is_an_error() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents(0)).unwrap();
    let source = FileSource::new(file, 0);
    let error = source.read(1, &mut [0; 4096]).unwrap_err();
    assert!(error.to_string().contains("page 1"), "{error}");
    assert!(source.read(u64::MAX, &mut [0; 4096]).is_err());
}
