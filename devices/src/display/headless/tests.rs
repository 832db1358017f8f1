// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use crate::display::CURSOR_BYTES;
use crate::display::testing::Plain;

const NOW: Duration = Duration::from_millis(1);

fn display() -> (Headless, DisplayFrames, ScanoutId, Arc<Budget>) {
    let budget = Budget::bytes("test", 1 << 20);
    let (display, frames) = Headless::new(Arc::clone(&budget));
    (display, frames, ScanoutId::new(0).unwrap(), budget)
}

fn area(x: u16, y: u16, width: u16, height: u16) -> Area {
    Area { x, y, size: Size::new(width, height) }
}

fn flush(display: &mut Headless, id: ScanoutId, damage: Area, pixels: &Plain) {
    let left = display.flush(id, damage, pixels, &mut Deadline::never());
    assert_eq!(left, None);
}

fn read(viewer: &Viewer, area: Area) -> Vec<u8> {
    let mut out = Vec::new();
    viewer.read(area, &mut out);
    out
}

#[test]
fn each_viewer_sees_the_size_and_then_all_damage() {
    let (mut display, frames, id, _) = display();
    let viewers = [frames.view(id), frames.view(id)];
    let size = Size::new(8, 6);
    display.set_size(id, Some(size));
    assert!(display.watched(id));
    // The first flush copies everything, the second only its damage.
    flush(&mut display, id, area(1, 1, 2, 2), &Plain(size, 7));
    for viewer in &viewers {
        let change = viewer.next(NOW).unwrap();
        let whole = Some(Area::whole(size));
        assert_eq!((change.size, change.resized, change.damage), (Some(size), true, whole));
    }
    flush(&mut display, id, area(1, 2, 2, 1), &Plain(size, 9));
    let change = viewers[0].next(NOW).unwrap();
    assert_eq!((change.resized, change.damage), (false, Some(area(1, 2, 2, 1))));
    assert_eq!(read(&viewers[0], area(1, 2, 2, 1)), [9; 8]);
    assert_eq!(viewers[0].next(NOW), None);
    flush(&mut display, id, area(4, 0, 1, 1), &Plain(size, 9));
    let change = viewers[1].next(NOW).unwrap();
    assert_eq!(change.damage, Some(area(1, 0, 4, 3)), "both flushes are one area");
    drop(viewers);
    assert!(!display.watched(id));
}

#[test]
fn a_frame_is_freed_with_its_last_viewer() {
    let (mut display, frames, id, budget) = display();
    let size = Size::new(100, 100);
    display.set_size(id, Some(size));
    flush(&mut display, id, Area::whole(size), &Plain(size, 1));
    assert_eq!(budget.used(), 0, "no viewer");
    let viewers = (frames.view(id), frames.view(id));
    flush(&mut display, id, Area::whole(size), &Plain(size, 1));
    assert_eq!(budget.used(), size.bytes());
    drop(viewers.0);
    assert_eq!(budget.used(), size.bytes());
    drop(viewers.1);
    assert_eq!(budget.used(), 0);
    // A later viewer does not see an old picture.
    let viewer = frames.view(id);
    assert_eq!(viewer.next(NOW).unwrap().damage, None);
    assert_eq!(read(&viewer, area(0, 0, 1, 1)), [0; 4]);
}

#[test]
fn a_frame_of_another_size_is_freed_by_a_viewer_and_not_by_the_device() {
    let (mut display, frames, id, budget) = display();
    let (large, small) = (Size::new(100, 100), Size::new(50, 50));
    display.set_size(id, Some(large));
    let viewer = frames.view(id);
    flush(&mut display, id, Area::whole(large), &Plain(large, 1));
    display.set_size(id, Some(small));
    assert_eq!(budget.used(), large.bytes(), "the device has left it");
    assert_eq!(viewer.next(NOW).unwrap().size, Some(small));
    assert_eq!(budget.used(), 0);
    // And with its last viewer.
    flush(&mut display, id, Area::whole(small), &Plain(small, 1));
    display.set_size(id, None);
    assert_eq!(budget.used(), small.bytes());
    drop(viewer);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_frame_beyond_the_budget_is_not_made() {
    let (mut display, frames, id, budget) = display();
    let size = Size::new(600, 600);
    display.set_size(id, Some(size));
    let viewer = frames.view(id);
    flush(&mut display, id, Area::whole(size), &Plain(size, 1));
    assert_eq!((budget.used(), budget.refusals()), (0, 1));
    assert_eq!(viewer.next(NOW).unwrap().damage, None);
    assert_eq!(read(&viewer, area(0, 0, 1, 1)), [0; 4]);
}

#[test]
fn a_picture_that_is_cut_is_seen_when_it_is_whole() {
    let (mut display, frames, id, _) = display();
    let size = Size::new(8, 6);
    display.set_size(id, Some(size));
    let viewer = frames.view(id);
    viewer.next(NOW).unwrap();
    for _ in 0..5 {
        let progress = display.fill(id, &Plain(size, 3), &mut Deadline::of_work(1));
        assert_eq!((progress, viewer.next(NOW)), (Progress::More, None));
    }
    // A flush during the fill copies the rest, and then its damage.
    let damage = area(2, 2, 2, 2);
    let left = display.flush(id, damage, &Plain(size, 4), &mut Deadline::of_work(33));
    assert_eq!(left, Some(area(2, 3, 2, 1)));
    let change = viewer.next(NOW).unwrap();
    assert_eq!(change.damage, Some(Area::whole(size)));
    assert_eq!(read(&viewer, area(2, 1, 1, 3)), [[3; 4], [4; 4], [3; 4]].concat());
}

#[test]
fn a_cursor_is_damage_where_it_was_and_where_it_is() {
    let (mut display, frames, id, _) = display();
    let size = Size::new(200, 100);
    display.set_size(id, Some(size));
    let viewer = frames.view(id);
    flush(&mut display, id, Area::whole(size), &Plain(size, 0));
    let image = Some(Arc::new([255; CURSOR_BYTES]));
    let mut cursor = Cursor { x: 10, y: 10, image, ..Cursor::default() };
    display.set_cursor(id, &cursor);
    viewer.next(NOW).unwrap();
    cursor.x = 50;
    display.set_cursor(id, &cursor);
    let damage = viewer.next(NOW).unwrap().damage.unwrap();
    assert_eq!(damage, area(10, 10, 104, 64));
    let pixels = read(&viewer, damage);
    let white = pixels.as_chunks::<4>().0.iter().filter(|p| p[0] == 255).count();
    assert_eq!(white, 64 * 64);
}
