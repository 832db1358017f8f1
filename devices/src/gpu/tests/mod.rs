// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device through its queues, as a driver sees it.
//!
//! - `commands.rs`: each command done right
//! - `hostile.rs`: invalid commands of every kind
//! - `deadlines.rs`: the longest possible commands, whose rounds stay short
//! - `budgets.rs`: guests that allocate as much as possible
//! - `model.rs`: any order of drawing, transfers and migrations, against two arrays

mod budgets;
mod commands;
mod deadlines;
mod hostile;
mod model;

use super::mock::{BUFFERS, Driver, Setup, single_pages};
use super::response::ok;
use super::{GpuLimits, PixelFormat};
use crate::display::{ScanoutId, Size};
use crate::virtio::Deadline;

const FIRST_PAGE: u64 = BUFFERS / 4096;
const XRGB: PixelFormat = PixelFormat::B8G8R8X8;

/// A small device, whose rounds are bounded by work and not by time.
fn setup() -> Setup {
    Setup {
        limits: GpuLimits { resources: 64, entries_per_resource: 1024 },
        host_bytes: 5 << 20,
        deadline: || Deadline::of_work(Deadline::WORK),
    }
}

fn driver() -> Driver {
    Driver::new(setup())
}

fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}

/// The picture on scanout 0.
fn picture(d: &mut Driver) -> Vec<u8> {
    d.picture(ScanoutId::new(0).unwrap()).unwrap().data().to_vec()
}

/// A 2D resource 1 of `size` over the pages from [`FIRST_PAGE`] on.
fn image(d: &mut Driver, format: PixelFormat, size: Size) {
    assert_eq!(d.create_2d(1, format, size), ok::NODATA);
    let pages = size.bytes().div_ceil(4096);
    assert_eq!(d.attach(1, &single_pages(FIRST_PAGE..FIRST_PAGE + pages)), ok::NODATA);
}

/// A guest blob 1 of `size` over the pages from [`FIRST_PAGE`] on, on scanout 0.
fn shown_blob(d: &mut Driver, size: Size) -> Vec<u64> {
    let pages: Vec<u64> = (FIRST_PAGE..FIRST_PAGE + size.bytes().div_ceil(4096)).collect();
    let entries = single_pages(pages.iter().copied());
    assert_eq!(d.create_guest_blob(1, size.bytes(), &entries), ok::NODATA);
    assert_eq!(d.set_scanout_blob(0, 1, size), ok::NODATA);
    pages
}
