// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A display without a screen: it keeps the latest frame for whoever asks.
//!
//! A frame costs host memory and a copy per flush, so none is kept that nobody looks at. A look
//! makes a scanout watched for a while: the first look takes the picture from the guest's memory as
//! it is at that moment, later ones find what the guest last flushed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Cursor, Display, Frame, MAX_SCANOUTS, Pixels, Rect, ScanoutId, Size, Snapshot};

/// How long a scanout stays watched after a look.
const LINGER: Duration = Duration::from_secs(10);

/// One scanout.
#[derive(Default)]
struct Screen {
    size: Option<Size>,
    frame: Option<Frame>,
    cursor: Cursor,
    looked: Option<Instant>,
    viewers: Vec<Pending>,
}

/// What a viewer has not seen yet.
struct Pending {
    viewer: u64,
    damage: Rect,
    resized: bool,
}

impl Screen {
    fn watched(&self) -> bool {
        !self.viewers.is_empty() || self.looked.is_some_and(|at| at.elapsed() < LINGER)
    }

    fn touch(&mut self, damage: Rect) {
        for pending in &mut self.viewers {
            pending.damage = pending.damage.union(damage);
        }
    }

    fn resize(&mut self, size: Option<Size>) {
        self.size = size;
        self.frame = None;
        for pending in &mut self.viewers {
            (pending.damage, pending.resized) = (Rect::default(), true);
        }
    }
}

#[derive(Default)]
struct Shared {
    screens: Mutex<[Screen; MAX_SCANOUTS]>,
    changed: Condvar,
}

impl Shared {
    fn screens(&self) -> MutexGuard<'_, [Screen; MAX_SCANOUTS]> {
        // Frames stay usable after a panic elsewhere: each update is whole.
        self.screens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The display's side: given to the device.
pub struct Headless(Arc<Shared>);

/// The onlooker's side: for the API and for a live view.
#[derive(Clone)]
pub struct Frames(Arc<Shared>);

impl Headless {
    /// A display, and the way to its frames.
    pub fn new() -> (Self, Frames) {
        let shared = Arc::<Shared>::default();
        (Self(Arc::clone(&shared)), Frames(shared))
    }
}

impl Display for Headless {
    fn set_size(&mut self, scanout: ScanoutId, size: Option<Size>) {
        let screen = &mut self.0.screens()[scanout.index()];
        if screen.size != size {
            screen.resize(size);
            self.0.changed.notify_all();
        }
    }

    fn watched(&self, scanout: ScanoutId) -> bool {
        let screen = &mut self.0.screens()[scanout.index()];
        let watched = screen.watched();
        if !watched {
            screen.frame = None;
        }
        watched
    }

    fn flush(&mut self, scanout: ScanoutId, damage: Rect, pixels: &dyn Pixels) {
        let screen = &mut self.0.screens()[scanout.index()];
        let Some(size) = screen.size else { return };
        // The first flush that is kept has to bring the rest of the picture too.
        let damage = if screen.frame.is_some() { damage } else { Rect::whole(size) };
        if screen.frame.is_none() {
            screen.frame = Frame::new(size);
        }
        if let Some(frame) = &mut screen.frame {
            frame.update(damage, pixels);
            screen.touch(damage);
            self.0.changed.notify_all();
        }
    }

    fn set_cursor(&mut self, scanout: ScanoutId, cursor: &Cursor) {
        let screen = &mut self.0.screens()[scanout.index()];
        let before = std::mem::replace(&mut screen.cursor, cursor.clone());
        for cursor in [&before, cursor] {
            screen.touch(cursor_place(cursor));
        }
        self.0.changed.notify_all();
    }
}

/// The pixels that `cursor` may cover.
fn cursor_place(cursor: &Cursor) -> Rect {
    let edge = |at: i32| u32::try_from(at).unwrap_or(0);
    match cursor.image {
        Some(_) => {
            Rect::new(edge(cursor.x), edge(cursor.y), super::CURSOR_EXTENT, super::CURSOR_EXTENT)
        }
        None => Rect::default(),
    }
}

impl Frames {
    /// Size of what the scanout shows; `None` when it shows nothing.
    pub fn size(&self, scanout: ScanoutId) -> Option<Size> {
        self.0.screens()[scanout.index()].size
    }

    /// Makes the scanout watched for a while; true when a frame is there already.
    ///
    /// Where it is not, the device has to be asked for one before [`Frames::snapshot`].
    pub fn look(&self, scanout: ScanoutId) -> bool {
        let screen = &mut self.0.screens()[scanout.index()];
        let fresh = screen.watched();
        screen.looked = Some(Instant::now());
        if !fresh {
            // It missed flushes while nobody looked.
            screen.frame = None;
        }
        screen.frame.is_some()
    }

    /// A copy of the latest frame and the cursor.
    pub fn snapshot(&self, scanout: ScanoutId) -> Option<Snapshot> {
        let screen = &self.0.screens()[scanout.index()];
        let frame = screen.frame.clone()?;
        Some(Snapshot { frame, cursor: screen.cursor.clone() })
    }

    /// Watches the scanout for as long as the viewer lives. The first thing that it finds new is
    /// the size.
    pub fn view(&self, scanout: ScanoutId) -> Viewer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let viewer = NEXT.fetch_add(1, Ordering::Relaxed);
        let screen = &mut self.0.screens()[scanout.index()];
        if !screen.watched() {
            screen.frame = None;
        }
        let damage = screen.frame.as_ref().map_or(Rect::default(), |f| Rect::whole(f.size()));
        screen.viewers.push(Pending { viewer, damage, resized: true });
        Viewer { shared: Arc::clone(&self.0), scanout, viewer }
    }
}

/// What a viewer finds new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Size of the whole picture; none while there is nothing to see.
    pub size: Option<Size>,
    /// The size may differ from the one before.
    pub resized: bool,
    /// Where `pixels` are in the picture.
    pub area: Rect,
    /// The pixels that changed, with the cursor on them; none when only the size did.
    pub pixels: Option<Frame>,
}

/// Follows one scanout.
pub struct Viewer {
    shared: Arc<Shared>,
    scanout: ScanoutId,
    viewer: u64,
}

impl Viewer {
    /// Asks for the whole picture again.
    pub fn want_all(&self) {
        let screen = &mut self.shared.screens()[self.scanout.index()];
        let all = screen.frame.as_ref().map_or(Rect::default(), |f| Rect::whole(f.size()));
        screen.touch(all);
    }

    /// Waits for something new, at most for `patience`; `None` when there is nothing.
    pub fn next(&self, patience: Duration) -> Option<Change> {
        let index = self.scanout.index();
        let news = |screen: &Screen| {
            let pending = screen.viewers.iter().find(|pending| pending.viewer == self.viewer);
            pending.is_some_and(|p| p.resized || !p.damage.is_empty() && screen.frame.is_some())
        };
        let screens = self.shared.screens();
        let wait = self
            .shared
            .changed
            .wait_timeout_while(screens, patience, |screens| !news(&screens[index]));
        let (mut screens, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return None;
        }
        let screen = &mut screens[index];
        let pending = screen.viewers.iter_mut().find(|pending| pending.viewer == self.viewer)?;
        let resized = std::mem::take(&mut pending.resized);
        let damage = std::mem::take(&mut pending.damage);
        let (size, mut cursor) = (screen.size, screen.cursor.clone());
        let cropped = screen.frame.as_ref().and_then(|frame| frame.crop(damage));
        drop(screens);
        let Some((area, mut pixels)) = cropped else {
            return Some(Change { size, resized, area: Rect::default(), pixels: None });
        };
        // An area lies within 32 signed bits, as its frame does.
        cursor.x = cursor.x.saturating_sub_unsigned(area.x);
        cursor.y = cursor.y.saturating_sub_unsigned(area.y);
        pixels.compose(&cursor);
        Some(Change { size, resized, area, pixels: Some(pixels) })
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let screen = &mut self.shared.screens()[self.scanout.index()];
        screen.viewers.retain(|pending| pending.viewer != self.viewer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of one colour.
    struct Plain(Size, u8);

    impl Pixels for Plain {
        fn size(&self) -> Size {
            self.0
        }

        fn copy(&self, rect: Rect, out: &mut [u8], stride: usize) {
            for line in out.chunks_mut(stride).take(rect.height as usize) {
                line[..4 * rect.width as usize].fill(self.1);
            }
        }
    }

    const NOW: Duration = Duration::from_millis(1);

    #[test]
    fn each_viewer_sees_the_size_and_then_all_damage() {
        let (mut display, frames) = Headless::new();
        let id = ScanoutId::new(0).unwrap();
        let viewers = [frames.view(id), frames.view(id)];
        let size = Size::new(8, 6);
        display.set_size(id, Some(size));
        assert!(display.watched(id));
        // The first flush that is kept brings everything, the second only what it says.
        display.flush(id, Rect::new(1, 1, 2, 2), &Plain(size, 7));
        for viewer in &viewers {
            let change = viewer.next(NOW).unwrap();
            assert_eq!(
                (change.size, change.resized, change.area),
                (Some(size), true, Rect::whole(size))
            );
        }
        display.flush(id, Rect::new(1, 2, 2, 1), &Plain(size, 9));
        let change = viewers[0].next(NOW).unwrap();
        assert_eq!((change.resized, change.area), (false, Rect::new(1, 2, 2, 1)));
        assert_eq!(change.pixels.unwrap().data(), [9; 8]);
        assert_eq!(viewers[0].next(NOW), None);
        display.flush(id, Rect::new(4, 0, 1, 1), &Plain(size, 9));
        let change = viewers[1].next(NOW).unwrap();
        assert_eq!(change.area, Rect::new(1, 0, 4, 3), "what came meanwhile is one area");
        drop(viewers);
        assert!(!display.watched(id));
    }

    #[test]
    fn a_frame_that_missed_flushes_is_not_shown() {
        let (mut display, frames) = Headless::new();
        let id = ScanoutId::new(3).unwrap();
        let size = Size::new(4, 4);
        display.set_size(id, Some(size));
        let viewer = frames.view(id);
        display.flush(id, Rect::whole(size), &Plain(size, 1));
        assert!(frames.snapshot(id).is_some());
        drop(viewer);
        assert!(!frames.look(id), "a flush may have been missed since");
        assert!(frames.snapshot(id).is_none());
    }

    #[test]
    fn a_cursor_is_damage_where_it_was_and_where_it_is() {
        let (mut display, frames) = Headless::new();
        let id = ScanoutId::new(0).unwrap();
        let size = Size::new(200, 100);
        display.set_size(id, Some(size));
        let viewer = frames.view(id);
        display.flush(id, Rect::whole(size), &Plain(size, 0));
        let image = Some(Arc::new([255; super::super::CURSOR_BYTES]));
        let mut cursor = Cursor { x: 10, y: 10, image, ..Cursor::default() };
        display.set_cursor(id, &cursor);
        viewer.next(NOW).unwrap();
        cursor.x = 50;
        display.set_cursor(id, &cursor);
        let change = viewer.next(NOW).unwrap();
        assert_eq!(change.area, Rect::new(10, 10, 104, 64));
        let pixels = change.pixels.unwrap();
        let white = pixels.data().as_chunks::<4>().0.iter().filter(|p| p[0] == 255).count();
        assert_eq!(white, 64 * 64);
    }
}
