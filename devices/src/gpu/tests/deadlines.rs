// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The longest possible commands, many per notification. A round ends when its work is done, plus
//! at most one step; work is counted instead of measured by a clock.

use zerocopy::IntoBytes;

use super::{FIRST_PAGE, XRGB};
use crate::display::{Rect, ScanoutId, Size};
use crate::gpu::mock::{BUFFERS, Driver, Setup, entry, single_pages};
use crate::gpu::protocol::{
    CommandHeader, CreateBlob, Flush, MapBlob, MemEntry, MigrateEntry, TransferToHost,
    UpdateCursor, blob_flag, blob_mem, code, header_flag,
};
use crate::gpu::response::{error, ok};
use crate::gpu::{CONTROL_QUEUE, CURSOR_QUEUE, GpuLimits, backing_ranges};
use crate::transport::register;
use crate::virtio::Deadline;

/// Work of one round in these tests.
const WORK: u64 = 1 << 20;
/// The longest step that is not interrupted, except for rows in which each byte is a run: 256 KiB
/// of memory, or a chain of a thousand descriptors.
const STEP: u64 = 512 << 10;
/// A row of 4 KiB of which each byte is a run.
const RAGGED_ROW: u64 = 4096 * (Deadline::ENTRY + 1);
const MANY: u32 = 1 << 18;

fn large() -> Driver {
    Driver::new(Setup {
        limits: GpuLimits { resources: 64, entries_per_resource: MANY },
        host_bytes: 256 << 20,
        deadline: || Deadline::of_work(WORK),
    })
}

/// A command with fence `fence`.
fn command(kind: u32, fence: u64, body: &[&[u8]]) -> Vec<u8> {
    let header = CommandHeader {
        kind: kind.into(),
        flags: header_flag::FENCE.into(),
        fence_id: fence.into(),
        ..CommandHeader::default()
    };
    [&[header.as_bytes()], body].concat().concat()
}

/// Puts all of `commands` on a queue, notifies once, and runs the loop. Each is answered with
/// `code`, in order, and no round did more than `most` units of work. The number of rounds.
fn run(d: &mut Driver, queue: u16, commands: &[Vec<u8>], code: u32, most: u64) -> usize {
    let mark = d.driver.alloc(0);
    let answers: Vec<_> = commands.iter().map(|bytes| d.post(queue, bytes, 64)).collect();
    d.driver.notify(queue);
    let rounds = d.driver.run();
    for (n, at) in answers.into_iter().enumerate() {
        let written = d.driver.used(queue).expect("every command is answered").1;
        let answer = d.read(at.0, written as usize);
        assert_eq!(answer[..4], code.to_le_bytes(), "command {n}");
        assert_eq!(answer[8..16], commands[n][8..16], "fence of command {n}");
    }
    d.driver.release(mark);
    let work = d.driver.transport().most_work();
    assert!(work <= most, "a round did {work} units of work, of {most}");
    rounds
}

/// 256 single bytes of guest memory, no two of which are neighbours, over and over.
fn single_bytes(count: u32) -> Vec<MemEntry> {
    (0..u64::from(count)).map(|n| entry(BUFFERS + n % 256 * 2, 1)).collect()
}

fn create_blob(id: u32, size: u64, entries: &[MemEntry]) -> Vec<u8> {
    let c = CreateBlob {
        resource_id: id.into(),
        blob_mem: blob_mem::GUEST.into(),
        nr_entries: (entries.len() as u32).into(),
        size: size.into(),
        ..CreateBlob::default()
    };
    command(code::RESOURCE_CREATE_BLOB, id.into(), &[c.as_bytes(), entries.as_bytes()])
}

fn transfer(id: u32, rect: Rect, fence: u64) -> Vec<u8> {
    let c =
        TransferToHost { rect: rect.into(), resource_id: id.into(), ..TransferToHost::default() };
    command(code::TRANSFER_TO_HOST_2D, fence, &[c.as_bytes()])
}

fn flush(id: u32, rect: Rect, fence: u64) -> Vec<u8> {
    let c = Flush { rect: rect.into(), resource_id: id.into(), ..Flush::default() };
    command(code::RESOURCE_FLUSH, fence, &[c.as_bytes()])
}

/// Image 1, of the most rows that there are.
fn tall_image(d: &mut Driver) -> Size {
    let size = Size::new(64, u16::MAX);
    assert_eq!(d.create_2d(1, XRGB, size), ok::NODATA);
    let pages = size.bytes().div_ceil(4096);
    assert_eq!(d.attach(1, &single_pages((FIRST_PAGE..FIRST_PAGE + pages).rev())), ok::NODATA);
    size
}

#[test]
fn columns_of_a_tall_image() {
    let mut d = large();
    tall_image(&mut d);
    let column = |n: u64| transfer(1, Rect::new(n as u32, 0, 1, u16::MAX.into()), n);
    let commands: Vec<_> = (0..6).map(column).collect();
    let rounds = run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP);
    assert!(rounds as u64 >= 6 * 65_535 * Deadline::ENTRY / (WORK + STEP), "{rounds} rounds");
    assert_eq!(d.gpu().stats().counters.transfer_bytes, 6 * 4 * 65_535);
}

#[test]
fn whole_images() {
    let mut d = large();
    let size = tall_image(&mut d);
    let commands: Vec<_> = (0..3).map(|n| transfer(1, Rect::whole(size), n)).collect();
    run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP);
}

#[test]
fn as_many_entries_as_there_may_be() {
    let mut d = large();
    // Two pages in turn, so that no two entries become one run; then single bytes.
    let pages: Vec<_> = (0..u64::from(MANY)).map(|n| entry(BUFFERS + n % 2 * 8192, 4096)).collect();
    for (id, entries) in (1..).zip([pages, single_bytes(MANY)]) {
        let blob = create_blob(id, u64::from(MANY), &entries);
        let rounds = run(&mut d, CONTROL_QUEUE, &[blob], ok::NODATA, WORK + STEP);
        assert!(rounds >= 40, "{rounds} rounds");
        d.gpu().validate();
    }
    // A walk over all of it gives every whole page, in rounds of its own.
    assert_eq!(backing_ranges(d.shared()).len(), MANY as usize);
    let unref = command(code::RESOURCE_UNREF, 7, &[&1u32.to_le_bytes(), &[0; 4]]);
    let rounds = run(&mut d, CONTROL_QUEUE, &[unref], ok::NODATA, WORK + STEP);
    assert!(rounds >= 10, "runs are freed in {rounds} rounds");
    assert_eq!(backing_ranges(d.shared()).len(), 0);
}

#[test]
fn a_backing_of_many_runs_that_is_detached() {
    let mut d = large();
    assert_eq!(d.create_2d(1, XRGB, Size::new(64, 64)), ok::NODATA);
    assert_eq!(d.attach(1, &single_bytes(MANY)), ok::NODATA);
    let detach = command(code::RESOURCE_DETACH_BACKING, 7, &[&1u32.to_le_bytes(), &[0; 4]]);
    let rounds = run(&mut d, CONTROL_QUEUE, &[detach], ok::NODATA, WORK + STEP);
    assert!(rounds >= 10, "runs are freed in {rounds} rounds");
    d.gpu().validate();
}

/// Valid entries except for the last, which makes the command fail after all others are read.
fn many_entries_and_a_bad_one() -> Vec<MemEntry> {
    let mut entries = single_bytes(MANY);
    entries[MANY as usize - 1] = entry(u64::MAX - 4096, 1);
    entries
}

#[test]
fn a_backing_of_many_runs_that_fails_at_the_last_entry() {
    let mut d = large();
    let built = {
        let blob = create_blob(1, u64::from(MANY), &single_bytes(MANY));
        run(&mut d, CONTROL_QUEUE, &[blob], ok::NODATA, WORK + STEP)
    };
    // Freeing what was built takes as many rounds as it takes for a detached backing.
    let bad_entry = create_blob(2, u64::from(MANY), &many_entries_and_a_bad_one());
    let too_small = create_blob(3, u64::from(MANY) + 1, &single_bytes(MANY));
    for command in [bad_entry, too_small] {
        let used = d.budget.used();
        let rounds = run(&mut d, CONTROL_QUEUE, &[command], error::PARAMETER, WORK + STEP);
        assert!(rounds >= built + 10, "{rounds} rounds, {built} of them to build");
        assert_eq!(d.budget.used(), used, "nothing of it stays");
        d.gpu().validate();
    }
    assert_eq!(d.create_2d(4, XRGB, Size::new(64, 64)), ok::NODATA);
    let head = [4u32.to_le_bytes(), MANY.to_le_bytes()].concat();
    let entries = many_entries_and_a_bad_one();
    let attach = command(code::RESOURCE_ATTACH_BACKING, 9, &[&head, entries.as_bytes()]);
    let rounds = run(&mut d, CONTROL_QUEUE, &[attach], error::PARAMETER, WORK + STEP);
    assert!(rounds >= built + 10, "{rounds} rounds, {built} of them to build");
    assert_eq!(d.attach(4, &single_pages([FIRST_PAGE])), ok::NODATA, "it may be tried again");
}

#[test]
fn a_queue_that_is_stopped_frees_a_cut_build_in_rounds() {
    let mut d = large();
    d.post(CONTROL_QUEUE, &create_blob(1, u64::from(MANY), &single_bytes(MANY)), 64);
    d.driver.notify(CONTROL_QUEUE);
    (0..50).for_each(|_| assert!(d.driver.turn()));
    assert!(d.budget.used() > 0 && d.driver.used(CONTROL_QUEUE).is_none());
    d.driver.write(register::QUEUE_SEL, CONTROL_QUEUE.into());
    d.driver.write(register::QUEUE_READY, 0);
    let rounds = d.driver.run();
    assert!(rounds >= 8, "runs are freed in {rounds} rounds");
    assert_eq!(d.budget.used(), 0);
    assert!(d.driver.transport().most_work() <= WORK + STEP);
    d.gpu().validate();
}

#[test]
fn transfers_from_single_bytes() {
    let mut d = large();
    let size = Size::new(256, 256);
    assert_eq!(d.create_2d(1, XRGB, size), ok::NODATA);
    assert_eq!(d.attach(1, &single_bytes(MANY)), ok::NODATA);
    let commands: Vec<_> = (0..3).map(|n| transfer(1, Rect::whole(size), n)).collect();
    run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP);
}

#[test]
fn flushes_with_a_viewer() {
    let mut d = large();
    let size = Size::new(1024, 8192);
    let viewer = d.frames.view(ScanoutId::new(0).unwrap());
    let entries = single_pages((FIRST_PAGE..FIRST_PAGE + 8192).rev());
    assert_eq!(d.create_guest_blob(1, size.bytes(), &entries), ok::NODATA);
    assert_eq!(d.set_scanout_blob(0, 1, size), ok::NODATA);
    // The first fills the whole picture; the others are columns.
    let column = |n: u64| flush(1, Rect::new(n as u32, 0, 1, u32::MAX), n);
    let commands: Vec<_> = (0..6).map(column).collect();
    let rounds = run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP);
    assert!(rounds as u64 >= size.bytes() / (WORK + STEP), "{rounds} rounds");
    drop(viewer);

    // Rows of single bytes are the worst case, of wide rows above all.
    for (id, size) in [(2, Size::new(1024, 64)), (3, Size::new(8192, 8))] {
        assert_eq!(d.create_guest_blob(id, size.bytes(), &single_bytes(MANY)), ok::NODATA);
        assert_eq!(d.set_scanout_blob(1, id, size), ok::NODATA);
        let viewer = d.frames.view(ScanoutId::new(1).unwrap());
        let commands: Vec<_> = (0..3).map(|n| flush(id, Rect::whole(size), n)).collect();
        run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP + 2 * RAGGED_ROW);
        drop(viewer);
    }
}

#[test]
fn migrations_of_pages_in_many_pieces() {
    let mut d = large();
    assert_eq!(d.create_guest_blob(1, MANY.into(), &single_bytes(MANY)), ok::NODATA);
    let target = |n: u64| BUFFERS + (1 << 20) + n * 4096;
    let migrate = |from: u64, count: u64, away: u64| {
        let moves: Vec<MigrateEntry> = (from..from + count)
            .map(|n| MigrateEntry { offset: (n * 4096).into(), addr: target(n + away).into() })
            .collect();
        let head = [1u32.to_le_bytes(), (count as u32).to_le_bytes()].concat();
        command(code::RESOURCE_MIGRATE_BACKING, from, &[&head, moves.as_bytes()])
    };
    let commands = [migrate(0, 40, 0), migrate(40, 24, 0), migrate(0, 64, 64)];
    let rounds = run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + STEP + RAGGED_ROW);
    assert!(rounds >= 60, "{rounds} rounds");
    assert_eq!(d.gpu().stats().backing_runs, 1, "all pages are neighbours now");
    d.gpu().validate();
}

#[test]
fn mappings_that_come_and_go() {
    let mut d = large();
    assert_eq!(d.create_host_blob(1, 4096, true), ok::NODATA);
    let map = MapBlob { resource_id: 1.into(), ..MapBlob::default() };
    let map = |fence| command(code::RESOURCE_MAP_BLOB, fence, &[map.as_bytes()]);
    let unmap = |fence| command(code::RESOURCE_UNMAP_BLOB, fence, &[&1u32.to_le_bytes(), &[0; 4]]);
    for n in 0..30 {
        d.post(CONTROL_QUEUE, &if n % 2 == 0 { map(n) } else { unmap(n) }, 64);
    }
    d.driver.notify(CONTROL_QUEUE);
    let rounds = d.driver.run();
    assert!(rounds as u64 >= 30 * Deadline::SYSCALL / (WORK + STEP), "{rounds} rounds");
    assert!(d.driver.transport().most_work() <= WORK + STEP);
    assert_eq!(d.gpu().stats().counters.errors, 0);
}

#[test]
fn host_memory_that_comes_and_goes() {
    let mut d = large();
    let create = |id: u32| {
        let c = CreateBlob {
            resource_id: id.into(),
            blob_mem: blob_mem::HOST3D.into(),
            blob_flags: blob_flag::MAPPABLE.into(),
            size: (100u64 << 20).into(),
            ..CreateBlob::default()
        };
        command(code::RESOURCE_CREATE_BLOB, 0, &[c.as_bytes()])
    };
    let unref = |id: u32| command(code::RESOURCE_UNREF, 0, &[&id.to_le_bytes(), &[0; 4]]);
    let commands = [create(1), create(2), unref(1), create(3), unref(2), unref(3)];
    let rounds = run(&mut d, CONTROL_QUEUE, &commands, ok::NODATA, WORK + 2 * STEP);
    assert!(rounds as u64 >= 3 * (100 << 20) / 4 / (WORK + 2 * STEP), "{rounds} rounds");
    assert_eq!(d.budget.used(), 0);
}

#[test]
fn cursors_in_single_bytes() {
    let mut d = large();
    assert_eq!(d.create_guest_blob(1, MANY.into(), &single_bytes(MANY)), ok::NODATA);
    let c = UpdateCursor { resource_id: 1.into(), ..UpdateCursor::default() };
    let cursor = |n| command(code::UPDATE_CURSOR, n, &[c.as_bytes()]);
    let commands: Vec<_> = (0..20).map(cursor).collect();
    run(&mut d, CURSOR_QUEUE, &commands, ok::NODATA, WORK + STEP + RAGGED_ROW);
}

#[test]
fn extents_of_32_bits() {
    let mut d = large();
    let size = tall_image(&mut d);
    let far = [0, 1, u16::MAX.into(), 1 << 16, 1 << 31, u32::MAX];
    for (x, width) in far.into_iter().flat_map(|x| far.map(|width| (x, width))) {
        let rect = Rect::new(x, x, width, width);
        if rect.within(size).is_none() {
            assert_ne!(d.transfer(1, rect, 0), ok::NODATA);
            assert_ne!(d.set_scanout(0, 1, rect), ok::NODATA);
            assert_ne!(d.flush(1, rect), ok::NODATA);
        }
    }
    assert!(d.driver.transport().most_work() <= WORK + STEP);
}

#[test]
fn a_long_command_does_not_starve_the_cursor() {
    let mut d = large();
    let size = tall_image(&mut d);
    let long = d.post(CONTROL_QUEUE, &transfer(1, Rect::whole(size), 1), 64);
    d.driver.notify(CONTROL_QUEUE);
    for turn in 0..5u32 {
        let c = UpdateCursor { x: turn.into(), ..UpdateCursor::default() };
        d.post(CURSOR_QUEUE, &command(code::MOVE_CURSOR, 0, &[c.as_bytes()]), 64);
        d.driver.notify(CURSOR_QUEUE);
        assert!(d.driver.turn());
        assert!(d.driver.used(CURSOR_QUEUE).is_some(), "in the same turn of the loop");
        assert!(d.driver.used(CONTROL_QUEUE).is_none(), "not in so few rounds");
    }
    d.driver.run();
    assert!(d.driver.used(CONTROL_QUEUE).is_some());
    assert_eq!(d.read(long.0, 4), ok::NODATA.to_le_bytes());
}

#[test]
fn a_notification_leaves_a_command_under_way_to_the_loop() {
    let mut d = large();
    let size = tall_image(&mut d);
    d.post(CONTROL_QUEUE, &transfer(1, Rect::whole(size), 1), 64);
    for _ in 0..100 {
        // Enough rounds to finish it, were each notification one.
        d.driver.notify(CONTROL_QUEUE);
    }
    assert!(d.driver.used(CONTROL_QUEUE).is_none());
    d.driver.run();
    assert!(d.driver.used(CONTROL_QUEUE).is_some());
}

#[test]
fn a_command_under_way_at_a_reset_leaves_nothing_behind() {
    for turns in [0, 1, 5] {
        let mut d = large();
        tall_image(&mut d);
        assert_eq!(d.create_host_blob(2, 50 << 20, true), ok::NODATA);
        let entries = single_bytes(MANY);
        d.post(CONTROL_QUEUE, &create_blob(3, MANY.into(), &entries), 64);
        d.driver.notify(CONTROL_QUEUE);
        for _ in 0..turns {
            d.driver.turn();
        }
        assert!(d.budget.used() > 0 && d.driver.used(CONTROL_QUEUE).is_none());
        d.reset();
        assert_eq!(d.budget.used(), 0);
        d.gpu().validate();
        // And the next driver finds the device as the first one did.
        d.start(u64::MAX);
        assert_eq!(d.gpu().stats().counters.commands, 3);
        tall_image(&mut d);
    }
}

#[test]
fn a_queue_that_is_stopped_forgets_its_command() {
    let mut d = large();
    let size = tall_image(&mut d);
    d.post(CONTROL_QUEUE, &transfer(1, Rect::whole(size), 1), 64);
    d.driver.notify(CONTROL_QUEUE);
    d.driver.write(register::QUEUE_SEL, CONTROL_QUEUE.into());
    d.driver.write(register::QUEUE_READY, 0);
    assert!(d.driver.run() <= 2, "nothing is left to do");
    assert!(d.driver.used(CONTROL_QUEUE).is_none());
    assert_eq!(d.gpu().stats().counters.transfers, 0);
}
