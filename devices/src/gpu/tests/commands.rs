// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each command done right.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zerocopy::IntoBytes;

use super::{FIRST_PAGE, XRGB, driver, image, pattern, picture, setup, shown_blob};
use crate::display::{Area, CURSOR_BYTES, Rect, ScanoutId, Size};
use crate::gpu::mock::{BUFFERS, Driver, Setup, WINDOW, blob_surface, single_pages};
use crate::gpu::protocol::{CommandHeader, Flush, code};
use crate::gpu::response::{PageMove, error, ok};
use crate::gpu::{PixelFormat, refresh};
use crate::virtio::Deadline;

#[test]
fn display_info_and_edid_name_the_mode() {
    let mut d = driver();
    let info = d.send(
        CommandHeader { kind: code::GET_DISPLAY_INFO.into(), ..CommandHeader::default() },
        &[],
    );
    assert_eq!((info.code, info.body.len()), (ok::DISPLAY_INFO, 16 * 24));
    let word = |at: usize| u32::from_le_bytes(info.body[at..at + 4].try_into().unwrap());
    assert_eq!([word(8), word(12), word(16)], [640, 480, 1]);
    assert_eq!([word(24), word(32), word(40)], [640, 640, 1]);
    assert_eq!(word(2 * 24 + 16), 0);

    let edid = |d: &mut Driver, n: u32| {
        d.send(
            CommandHeader { kind: code::GET_EDID.into(), ..CommandHeader::default() },
            &[&n.to_le_bytes(), &[0; 4]],
        )
    };
    let answer = edid(&mut d, 1);
    assert_eq!((answer.code, answer.body.len()), (ok::EDID, 1032));
    assert_eq!(answer.body[..4], 128u32.to_le_bytes());
    assert_eq!(answer.body[8..136].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    assert_eq!(edid(&mut d, 2).code, error::SCANOUT_ID);
    assert_eq!(edid(&mut d, u32::MAX).code, error::SCANOUT_ID);
}

#[test]
fn a_new_mode_reaches_the_guest_as_an_event() {
    let mut d = driver();
    let events = |d: &Driver| d.driver.config(0);
    d.gpu().set_mode(0, Some(Size::new(640, 480))).unwrap();
    assert_eq!((events(&d), d.config_generation()), (0, 0), "no news");
    d.gpu().set_mode(0, Some(Size::new(1024, 768))).unwrap();
    assert_eq!((events(&d), d.config_generation()), (1, 1));
    d.driver.set_config(0, 1);
    assert_eq!(events(&d), 1, "events_read is read-only");
    d.driver.set_config(4, 1);
    assert_eq!(events(&d), 0);
    let info = d.send(
        CommandHeader { kind: code::GET_DISPLAY_INFO.into(), ..CommandHeader::default() },
        &[],
    );
    assert_eq!(info.body[8..12], 1024u32.to_le_bytes());

    d.gpu().set_mode(1, None).unwrap();
    // An unplugged monitor has no EDID: an empty one, as Linux logs an error for an error.
    let header = CommandHeader { kind: code::GET_EDID.into(), ..CommandHeader::default() };
    let answer = d.send(header, &[&1u32.to_le_bytes(), &[0; 4]]);
    assert_eq!((answer.code, answer.body.len()), (ok::EDID, 1032));
    assert!(answer.body.iter().all(|byte| *byte == 0));
    assert!(d.gpu().set_mode(2, None).is_err());
    for (width, height) in [(640, 4096), (31, 480), (u16::MAX, u16::MAX)] {
        assert!(d.gpu().set_mode(0, Some(Size::new(width, height))).is_err());
    }
    for (width, height) in [(0, 480), (640, 4096), (1 << 16, 480), (u32::MAX, u32::MAX)] {
        assert!(crate::gpu::mode(width, height).is_err());
    }
}

#[test]
fn every_format_is_shown_in_its_colours() {
    for format in PixelFormat::ALL {
        let mut d = driver();
        let size = Size::new(20, 10);
        image(&mut d, format, size);
        let bytes = pattern(1, 800);
        d.write(BUFFERS, &bytes);
        assert_eq!(d.transfer(1, Rect::whole(size), 0), ok::NODATA);
        assert_eq!(d.set_scanout(0, 1, Rect::whole(size)), ok::NODATA);
        assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
        let mut expected = bytes;
        format.to_bgra(&mut expected);
        assert_eq!(picture(&mut d), expected, "{format:?}");
        d.gpu().validate();
    }
}

#[test]
fn a_transfer_touches_only_its_rectangle() {
    let mut d = driver();
    let size = Size::new(64, 64);
    image(&mut d, XRGB, size);
    let first = pattern(1, 16384);
    d.write(BUFFERS, &first);
    assert_eq!(d.transfer(1, Rect::whole(size), 0), ok::NODATA);
    let second = pattern(2, 16384);
    d.write(BUFFERS, &second);
    let rect = Rect::new(5, 7, 11, 13);
    assert_eq!(d.transfer(1, rect, 7 * 256 + 5 * 4), ok::NODATA);
    assert_eq!(d.gpu().stats().counters.transfer_bytes, 16384 + 11 * 13 * 4);

    d.set_scanout(0, 1, Rect::whole(size));
    let shown = picture(&mut d);
    for (i, pixel) in shown.as_chunks::<4>().0.iter().enumerate() {
        let (x, y) = (i as u32 % 64, i as u32 / 64);
        let inside = rect.clip(Area { x: x as u16, y: y as u16, size: Size::new(1, 1) }).is_some();
        let from = if inside { &second } else { &first };
        assert_eq!(pixel[..], from[4 * i..4 * i + 4], "at {x}, {y}");
    }
}

#[test]
fn a_scanout_shows_a_part_and_flushes_are_clipped_to_it() {
    let mut d = driver();
    let size = Size::new(100, 60);
    shown_blob(&mut d, size);
    let mut c = blob_surface(size);
    c.resource_id = 1.into();
    c.rect = Rect::new(10, 20, 30, 5).into();
    assert_eq!(d.code(code::SET_SCANOUT_BLOB, &[c.as_bytes()]), ok::NODATA);
    // A viewer sees what was flushed, and nothing else.
    let id = ScanoutId::new(0).unwrap();
    let viewer = d.frames.view(id);
    refresh(d.shared(), id);
    let seen = || {
        let mut pixels = Vec::new();
        viewer.read(Area::whole(Size::new(30, 5)), &mut pixels);
        pixels
    };
    assert!(seen().iter().all(|byte| *byte == 0));

    let bytes = pattern(3, 24000);
    d.write(BUFFERS, &bytes);
    // Beside it: nothing changes. Across its corner: only that.
    assert_eq!(d.flush(1, Rect::new(0, 0, 10, 60)), ok::NODATA);
    assert!(seen().iter().all(|byte| *byte == 0));
    assert_eq!(d.flush(1, Rect::new(0, 0, 12, 22)), ok::NODATA);
    let shown = seen();
    for (i, pixel) in shown.as_chunks::<4>().0.iter().enumerate() {
        let (x, y) = (i % 30, i / 30);
        let at = ((20 + y) * 100 + 10 + x) * 4;
        let expected = if x < 2 && y < 2 { &bytes[at..at + 4] } else { &[0; 4] };
        assert_eq!(pixel[..], *expected, "at {x}, {y}");
    }
}

#[test]
fn a_blob_with_offset_and_stride_is_read_in_place() {
    let mut d = driver();
    let entries = single_pages(FIRST_PAGE..FIRST_PAGE + 8);
    assert_eq!(d.create_guest_blob(1, 32768, &entries), ok::NODATA);
    let bytes = pattern(4, 32768);
    d.write(BUFFERS, &bytes);
    let size = Size::new(33, 17);
    let mut c = blob_surface(size);
    c.resource_id = 1.into();
    c.strides[0] = 1000.into();
    c.offsets[0] = 124.into();
    assert_eq!(d.code(code::SET_SCANOUT_BLOB, &[c.as_bytes()]), ok::NODATA);
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    let rows = (0..17).flat_map(|y| bytes[124 + y * 1000..][..132].to_vec());
    assert_eq!(picture(&mut d), rows.collect::<Vec<u8>>());
    // Linux sends a transfer for dumb buffers that are blobs: nothing to copy, no error.
    assert_eq!(d.transfer(1, Rect::whole(size), 0), ok::NODATA);
    assert_eq!(d.gpu().stats().counters.transfers, 0);
    assert_eq!(d.gpu().stats().host_bytes, 0);
}

#[test]
fn nothing_is_copied_for_a_display_without_viewers() {
    let mut d = driver();
    let size = Size::new(64, 64);
    shown_blob(&mut d, size);
    let before = d.budget.used();
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    assert_eq!(d.budget.used(), before, "no frame");
}

#[test]
fn a_cursor_is_composed_and_hidden_again() {
    let mut d = driver();
    let size = Size::new(80, 70);
    shown_blob(&mut d, size);
    let cursor_pages = FIRST_PAGE + 100;
    assert_eq!(d.create_2d(2, PixelFormat::B8G8R8A8, Size::new(64, 64)), ok::NODATA);
    assert_eq!(d.attach(2, &single_pages(cursor_pages..cursor_pages + 4)), ok::NODATA);
    d.write(cursor_pages * 4096, &[0xff; CURSOR_BYTES]);
    assert_eq!(d.transfer(2, Rect::new(0, 0, 64, 64), 0), ok::NODATA);
    assert_eq!(d.update_cursor(0, 2, 40, -60), ok::NODATA);
    // The image was taken: the resource may go.
    assert_eq!(d.unref(2), ok::NODATA);
    let white = |d: &mut Driver| {
        let shown = picture(d);
        let pixels = shown.as_chunks::<4>().0;
        pixels.iter().filter(|pixel| pixel[..3] == [255; 3]).count()
    };
    assert_eq!(white(&mut d), 40 * 4);
    assert_eq!(d.update_cursor(0, 0, 0, 0), ok::NODATA);
    assert_eq!(white(&mut d), 0);

    assert_eq!(d.update_cursor(2, 0, 0, 0), error::SCANOUT_ID);
    assert_eq!(d.update_cursor(0, 9, 0, 0), error::RESOURCE_ID);
    assert_eq!(d.create_2d(3, XRGB, Size::new(63, 64)), ok::NODATA);
    assert_eq!(d.update_cursor(0, 3, 0, 0), error::PARAMETER);
    // Linux makes cursors of blobs too.
    assert_eq!(d.update_cursor(0, 1, i32::MIN, i32::MAX), ok::NODATA);
}

#[test]
fn uuids_are_stable_and_never_shared() {
    let mut d = driver();
    let uuid = |d: &mut Driver, id: u32| {
        let header =
            CommandHeader { kind: code::RESOURCE_ASSIGN_UUID.into(), ..CommandHeader::default() };
        let answer = d.send(header, &[&id.to_le_bytes(), &[0; 4]]);
        (answer.code, answer.body)
    };
    d.create_2d(1, XRGB, Size::new(1, 1));
    let first = uuid(&mut d, 1);
    assert_eq!((first.0, first.1.len()), (ok::RESOURCE_UUID, 16));
    assert_eq!(uuid(&mut d, 1), first);
    d.unref(1);
    assert_eq!(uuid(&mut d, 1).0, error::RESOURCE_ID);
    d.create_2d(1, XRGB, Size::new(1, 1));
    assert_ne!(uuid(&mut d, 1), first);
}

#[test]
fn host_blobs_are_mapped_where_asked_and_unmapped_cleanly() {
    let mut d = driver();
    assert_eq!(d.create_host_blob(1, 5000, true), ok::NODATA);
    assert_eq!(d.create_host_blob(2, 4096, true), ok::NODATA);
    assert_eq!(d.create_host_blob(3, 4096, false), ok::NODATA);
    for bad in [1, WINDOW, WINDOW - 4096, u64::MAX, u64::MAX - 8191, 1 << 63] {
        assert_eq!(d.map(1, bad), error::PARAMETER, "{bad:#x}");
    }
    assert_eq!(d.map(1, 0x4000), ok::MAP_INFO);
    assert_eq!(d.map(1, 0x8000), error::UNSPEC, "mapped already");
    for overlapping in [0x4000, 0x5000] {
        assert_eq!(d.map(2, overlapping), error::PARAMETER);
    }
    assert_eq!(d.map(2, 0x6000), ok::MAP_INFO);
    assert_eq!(d.map(3, 0x7000), error::PARAMETER, "not made to be mapped");
    assert_eq!(d.map(9, 0x7000), error::RESOURCE_ID);
    assert_eq!(d.gpu().stats().mapped_bytes, 3 * 4096);

    // The scanout shows what the guest writes there.
    d.window.at(0x4000).unwrap().bytes().copy_from(&pattern(9, 5000));
    assert_eq!(d.set_scanout_blob(0, 1, Size::new(25, 50)), ok::NODATA);
    assert_eq!(picture(&mut d), pattern(9, 5000));

    assert_eq!(d.on(code::RESOURCE_UNMAP_BLOB, 3), error::UNSPEC, "not mapped");
    assert_eq!(d.on(code::RESOURCE_UNMAP_BLOB, 2), ok::NODATA);
    assert_eq!(d.on(code::RESOURCE_UNMAP_BLOB, 2), error::UNSPEC);
    assert!(d.window.at(0x6000).is_none());
    // A freed blob is unmapped.
    assert_eq!(d.unref(1), ok::NODATA);
    assert!(d.window.at(0x4000).is_none());
    assert_eq!(d.map(2, 0x4000), ok::MAP_INFO);
    d.gpu().validate();
    d.reset();
    assert!(d.window.at(0x4000).is_none());
    assert_eq!(d.gpu().stats().host_bytes, 0);
    d.gpu().validate();
}

#[test]
fn large_backings_are_told_of_and_no_others() {
    const BLOCK_PAGES: u64 = 512;
    let mut d = driver();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    d.gpu().on_large_backing(Some(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    })));
    let entries = |pages| single_pages(FIRST_PAGE..FIRST_PAGE + pages);
    let blob = |d: &mut Driver, id, pages| d.create_guest_blob(id, pages * 4096, &entries(pages));
    assert_eq!(blob(&mut d, 1, BLOCK_PAGES - 1), ok::NODATA);
    assert_eq!(told.load(Ordering::Relaxed), 0);
    assert_eq!(blob(&mut d, 2, BLOCK_PAGES), ok::NODATA);
    assert_eq!(blob(&mut d, 2, BLOCK_PAGES), error::RESOURCE_ID, "there already");
    assert_eq!(told.load(Ordering::Relaxed), 1);
    d.create_2d(3, XRGB, Size::new(1024, 512));
    assert_eq!(d.attach(3, &entries(BLOCK_PAGES)), ok::NODATA);
    assert_eq!(told.load(Ordering::Relaxed), 2);
    d.gpu().on_large_backing(None);
    assert_eq!(blob(&mut d, 4, BLOCK_PAGES), ok::NODATA);
    assert_eq!(told.load(Ordering::Relaxed), 2);
}

#[test]
fn a_page_that_moves_while_shown_changes_no_pixel() {
    let mut d = driver();
    let size = Size::new(64, 64);
    shown_blob(&mut d, size);
    let bytes = pattern(5, 16384);
    d.write(BUFFERS, &bytes);
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    assert_eq!(picture(&mut d), bytes);
    let to = |n: u64| (FIRST_PAGE + 50 + n) * 4096;
    assert_eq!(d.migrate(1, &[(8192, to(0)), (0, to(1))]), ok::NODATA);
    // The guest frees the old pages on that answer, and writes something else to them.
    d.write(BUFFERS, &[0xee; 4096]);
    d.write(BUFFERS + 8192, &[0xee; 4096]);
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    assert_eq!(picture(&mut d), bytes);
    // And what it draws in the new one is seen.
    d.write(to(1), &[7; 4096]);
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    assert_eq!(picture(&mut d)[..4096], [7; 4096]);
    let counters = d.gpu().stats().counters;
    assert_eq!((counters.migrations, counters.migrated_pages), (1, 2));
}

#[test]
fn pages_of_several_resources_move_in_one_command() {
    // In one round, and cut after each step.
    for deadline in [Deadline::never, || Deadline::of_work(1)] {
        move_pages_of_several_resources(Driver::new(Setup { deadline, ..setup() }));
    }
}

fn move_pages_of_several_resources(mut d: Driver) {
    let size = Size::new(64, 64);
    shown_blob(&mut d, size);
    let bytes = pattern(5, 16384);
    d.write(BUFFERS, &bytes);
    let other = FIRST_PAGE + 40;
    assert_eq!(d.create_guest_blob(2, 4096, &single_pages([other])), ok::NODATA);
    d.write(other * 4096, &pattern(9, 4096));
    let to = |n: u64| (FIRST_PAGE + 50 + n) * 4096;
    let (moved, refused) = (PageMove::Moved as u8, PageMove::Refused as u8);
    // Resource 2 has one page: its two entries fail together, those of resource 1 do not care.
    let moves = [(1, 8192, to(0)), (2, 0, to(2)), (1, 0, to(1)), (2, 4096, to(3)), (7, 0, to(4))];
    let answer = d.migrate_pages(&moves);
    assert_eq!(answer, (ok::MIGRATE_PAGES, vec![moved, refused, moved, refused, refused]));
    d.write(BUFFERS, &[0xee; 4096]);
    d.write(BUFFERS + 8192, &[0xee; 4096]);
    assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
    assert_eq!(picture(&mut d), bytes);
    // Resource 2 is where it was, and can move by itself.
    assert_eq!(d.migrate_pages(&[(2, 0, to(2))]), (ok::MIGRATE_PAGES, vec![moved]));
    assert_eq!(d.read(to(2), 4096), pattern(9, 4096));
    let counters = d.gpu().stats().counters;
    assert_eq!((counters.migrated_pages, counters.migrations_failed), (3, 2));
    d.gpu().validate();
}

#[test]
fn a_flush_shows_on_every_scanout_of_the_resource() {
    let mut d = driver();
    let size = Size::new(32, 32);
    shown_blob(&mut d, size);
    assert_eq!(d.set_scanout_blob(1, 1, size), ok::NODATA);
    let scanouts = [0, 1].map(|n| ScanoutId::new(n).unwrap());
    let viewers = scanouts.map(|id| d.frames.view(id));
    d.write(BUFFERS, &pattern(8, 4096));
    let c = Flush { rect: Rect::whole(size).into(), resource_id: 1.into(), ..Flush::default() };
    assert_eq!(d.code(code::RESOURCE_FLUSH, &[c.as_bytes()]), ok::NODATA);
    for viewer in &viewers {
        let mut pixels = Vec::new();
        viewer.read(Area::whole(size), &mut pixels);
        assert_eq!(pixels, pattern(8, 4096));
    }
}
