// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that allocate as much as possible: everything is charged, and freed resources release
//! their charge.

use zerocopy::IntoBytes;

use super::{FIRST_PAGE, XRGB, driver, setup};
use crate::display::{Rect, ScanoutId, Size};
use crate::gpu::mock::{BUFFERS, Driver, MAPPINGS, Setup, blob_surface, entry, single_pages};
use crate::gpu::protocol::code;
use crate::gpu::response::{error, ok};
use crate::gpu::{CaptureError, GpuLimits, refresh};

#[test]
fn a_guest_that_takes_all_it_can_leaves_nothing_behind() {
    let mut d = driver();
    let size = Size::new(128, 128);
    // Resources until refused, then host memory until refused.
    let made = (1..).take_while(|id| d.create_2d(*id, XRGB, size) == ok::NODATA).count();
    assert_eq!(made, 64);
    assert_eq!(d.create_2d(1000, XRGB, size), error::OUT_OF_MEMORY);
    let entries = single_pages(FIRST_PAGE..FIRST_PAGE + 16);
    for id in 1..=64 {
        assert_eq!(d.attach(id, &entries), ok::NODATA);
    }
    let moved = (1..=64).filter(|id| d.transfer(*id, Rect::whole(size), 0) == ok::NODATA).count();
    assert_eq!(moved, 64, "64 images of 64 KiB are 4 of the 5 MiB");
    assert_eq!(d.gpu().stats().host_bytes, 4 << 20);
    assert_eq!(d.unref(64), ok::NODATA);
    let left = d.budget.left() / 4096 * 4096 - 4096;
    assert_eq!(d.create_host_blob(100, left, false), ok::NODATA);
    assert_eq!(d.unref(63), ok::NODATA);
    assert_eq!(d.create_host_blob(101, 3 * 65_536, false), error::OUT_OF_MEMORY);
    d.gpu().validate();
    for id in (1..=62).chain([100]) {
        assert_eq!(d.unref(id), ok::NODATA);
    }
    let stats = d.gpu().stats();
    assert_eq!((stats.host_bytes, stats.backing_bytes, stats.images.count), (0, 0, 0));
    assert_eq!(d.budget.used(), 0);
    d.gpu().validate();
}

#[test]
fn resources_without_memory_are_charged_too() {
    let limits = GpuLimits { resources: usize::MAX, entries_per_resource: 1024 };
    let mut d = Driver::new(Setup { limits, host_bytes: 1 << 20, ..setup() });
    let size = Size::new(1, 1);
    let made = (1..).take_while(|id| d.create_2d(*id, XRGB, size) == ok::NODATA).count();
    assert!((1000..8000).contains(&made), "{made} resources in a MiB");
    assert!(d.budget.used() > (1 << 20) - 1024);
    d.reset();
    assert_eq!(d.budget.used(), 0);
}

#[test]
fn runs_of_backings_are_charged() {
    // Each resource names two pages 512 times each, so that every entry is a run.
    let entries: Vec<_> = (0..1024).map(|n| entry(BUFFERS + n % 2 * 8192, 4096)).collect();
    let made = |d: &mut Driver| {
        (1..=63).take_while(|id| d.create_guest_blob(*id, 4096, &entries) == ok::NODATA).count()
    };
    let mut d = driver();
    assert_eq!(made(&mut d), 63);
    let paid = d.budget.used();
    assert!(paid > 63 * 1024 * 24, "{paid} bytes for 63 times 1024 runs of 16 bytes at least");
    d.gpu().validate();

    let mut d = Driver::new(Setup { host_bytes: paid / 2, ..setup() });
    assert_eq!(made(&mut d), 31);
    // A command that fails midway leaves nothing behind.
    assert!(d.budget.used() <= paid / 63 * 31);
    d.gpu().validate();
}

#[test]
fn mappings_are_counted() {
    let limits = GpuLimits { resources: 1000, entries_per_resource: 1024 };
    let mut d = Driver::new(Setup { limits, ..setup() });
    for id in 1..=100u32 {
        assert_eq!(d.create_host_blob(id, 4096, true), ok::NODATA);
    }
    let map = |d: &mut Driver, id: u32| d.map(id, u64::from(id) * 4096);
    let mapped = (1..=100).take_while(|id| map(&mut d, *id) == ok::MAP_INFO).count();
    assert_eq!(mapped as u64, MAPPINGS);
    assert_eq!(map(&mut d, 100), error::OUT_OF_MEMORY);
    assert_eq!(d.on(code::RESOURCE_UNMAP_BLOB, 1), ok::NODATA);
    assert_eq!(map(&mut d, 100), ok::MAP_INFO);
}

#[test]
fn pictures_and_viewers_share_the_guests_budget() {
    let mut d = driver();
    let size = Size::new(1000, 1000);
    let pages = size.bytes().div_ceil(4096);
    let entries = single_pages(FIRST_PAGE..FIRST_PAGE + pages);
    assert_eq!(d.create_guest_blob(1, size.bytes(), &entries), ok::NODATA);
    assert_eq!(d.set_scanout_blob(0, 1, size), ok::NODATA);
    let id = ScanoutId::new(0).unwrap();
    let idle = d.budget.used();
    let picture = d.picture(id).unwrap();
    assert_eq!(d.budget.used(), idle + size.bytes());
    // There is room for one, not for two; and none for a viewer's frame besides.
    let second = crate::gpu::capture(d.shared(), id);
    assert!(matches!(second, Err(CaptureError::Frame(_))), "{second:?}");
    let viewer = d.frames.view(id);
    refresh(d.shared(), id);
    assert_eq!(d.budget.used(), idle + size.bytes());
    drop(picture);
    assert_eq!(d.budget.used(), idle);
    refresh(d.shared(), id);
    assert_eq!(d.budget.used(), idle + size.bytes());
    drop(viewer);
    assert_eq!(d.budget.used(), idle, "given back without the guest's doing");
}

#[test]
fn a_scanout_larger_than_viewers_can_show_is_refused() {
    let mut d = Driver::new(Setup { host_bytes: 256 << 20, ..setup() });
    let large = entry(BUFFERS, 4 * 70_000 * 2);
    assert_eq!(d.create_guest_blob(1, 4 * 70_000 * 2, &[large]), ok::NODATA);
    let mut show = |width: u32, height: u32| {
        let mut c = blob_surface(Size::new(1, 1));
        c.resource_id = 1.into();
        (c.width, c.height) = (width.into(), height.into());
        (c.rect.width, c.rect.height) = (width.into(), height.into());
        c.strides[0] = (4 * width).into();
        d.code(code::SET_SCANOUT_BLOB, &[c.as_bytes()])
    };
    assert_eq!(show(70_000, 1), error::PARAMETER);
    assert_eq!(show(65_535, 1), error::PARAMETER);
    assert_eq!(show(1, 8193), error::PARAMETER);
    assert_eq!(show(8192, 8), ok::NODATA);
    assert_eq!(d.frames.size(ScanoutId::new(0).unwrap()), Some(Size::new(8192, 8)));
}
