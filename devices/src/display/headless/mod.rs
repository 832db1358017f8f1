// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A display without a screen, whose frames any number of viewers read.
//!
//! A frame costs host memory and a copy per flush, so a scanout has one only while it has a
//! [`Viewer`]: it is created for the first viewer, filled by the device one strip at a time, and
//! freed by a viewer's thread when the last viewer leaves or the size changes. Frames are charged
//! to the budget that the display is given; a scanout whose frame does not fit shows nothing.
//!
//! Locks: one mutex for all scanouts, held only while a strip is copied in or out. A
//! thread that holds it takes no other lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mm::budget::Budget;
use mm::units::SaturatingInto;

use crate::display::{
    Area, CURSOR_EXTENT, Cursor, Display, Frame, MAX_SCANOUTS, Pixels, Rect, ScanoutId, Size,
};
use crate::virtio::{Deadline, Progress};

/// One scanout.
#[derive(Default)]
struct Screen {
    size: Option<Size>,
    frame: Option<Frame>,
    cursor: Cursor,
    viewers: Vec<PendingView>,
    /// Frames that are no longer used. Freeing one takes milliseconds, so viewers do that instead
    /// of the device; until then they stay charged.
    retired: Vec<Frame>,
}

/// Changes that a viewer has not seen.
struct PendingView {
    viewer: u64,
    damage: Option<Area>,
    resized: bool,
}

impl Screen {
    fn watched(&self) -> bool {
        !self.viewers.is_empty()
    }

    fn complete(&self) -> bool {
        self.frame.as_ref().is_some_and(Frame::complete)
    }

    /// All of the picture, once there is one.
    fn whole(&self) -> Option<Area> {
        self.frame.as_ref().filter(|frame| frame.complete()).map(|frame| Area::whole(frame.size()))
    }

    /// Returns the changes that `viewer` has not seen, and marks them as seen.
    fn news_for(&mut self, viewer: u64) -> Option<ViewChange> {
        let complete = self.complete();
        let pending = self.viewers.iter_mut().find(|pending| pending.viewer == viewer)?;
        let resized = std::mem::take(&mut pending.resized);
        let damage = if complete { pending.damage.take() } else { None };
        Some(ViewChange { size: self.size, resized, damage })
    }

    fn touch(&mut self, damage: Area) {
        for pending in &mut self.viewers {
            pending.damage = Some(pending.damage.map_or(damage, |before| before.union(damage)));
        }
    }

    fn resize(&mut self, size: Option<Size>) {
        self.size = size;
        self.retired.extend(self.frame.take());
        for pending in &mut self.viewers {
            (pending.damage, pending.resized) = (None, true);
        }
    }

    /// The frame to fill; made if it does not exist and there is memory for it.
    fn frame(&mut self, budget: &Arc<Budget>) -> Option<&mut Frame> {
        let size = self.size.filter(|_| self.watched())?;
        if self.frame.is_none() {
            self.frame = Frame::new(size, budget)
                .inspect_err(
                    |error| tracing::debug!(%error, "cannot allocate a frame for a viewer"),
                )
                .ok();
        }
        self.frame.as_mut()
    }

    fn fill(
        &mut self,
        pixels: &dyn Pixels,
        budget: &Arc<Budget>,
        deadline: &mut Deadline,
    ) -> Progress {
        let Some(frame) = self.frame(budget) else { return Progress::Done };
        if frame.complete() || frame.size() != pixels.size() {
            return Progress::Done;
        }
        let progress = frame.fill(pixels, deadline);
        if let Some(whole) = self.whole() {
            self.touch(whole);
        }
        progress
    }
}

struct HeadlessShared {
    screens: Mutex<[Screen; MAX_SCANOUTS]>,
    changed: Condvar,
    budget: Arc<Budget>,
}

impl HeadlessShared {
    fn screens(&self) -> MutexGuard<'_, [Screen; MAX_SCANOUTS]> {
        // Frames stay usable after a panic in another thread: each update is complete.
        self.screens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The display's side, passed to the device.
pub struct Headless(Arc<HeadlessShared>);

/// The viewers' side.
#[derive(Clone)]
pub struct DisplayFrames(Arc<HeadlessShared>);

impl Headless {
    /// A display whose frames are charged to `budget`, and access to its frames.
    pub fn new(budget: Arc<Budget>) -> (Self, DisplayFrames) {
        let (screens, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(HeadlessShared { screens, changed, budget });
        (Self(Arc::clone(&shared)), DisplayFrames(shared))
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
        self.0.screens()[scanout.index()].watched()
    }

    fn fill(
        &mut self,
        scanout: ScanoutId,
        pixels: &dyn Pixels,
        deadline: &mut Deadline,
    ) -> Progress {
        let screen = &mut self.0.screens()[scanout.index()];
        let progress = screen.fill(pixels, &self.0.budget, deadline);
        if progress == Progress::Done {
            self.0.changed.notify_all();
        }
        progress
    }

    fn flush(
        &mut self,
        scanout: ScanoutId,
        damage: Area,
        pixels: &dyn Pixels,
        deadline: &mut Deadline,
    ) -> Option<Area> {
        let screen = &mut self.0.screens()[scanout.index()];
        // Once the deadline has passed, the damage is left for the next call.
        if screen.fill(pixels, &self.0.budget, deadline) == Progress::More || deadline.passed() {
            return Some(damage);
        }
        let frame = screen.frame.as_mut().filter(|frame| frame.size() == pixels.size())?;
        let left = frame.update(damage, pixels, deadline);
        let done = left.map_or(damage.bottom(), |left| left.y.into()) - u32::from(damage.y);
        if done > 0 {
            screen.touch(damage.split_rows(done).0);
            self.0.changed.notify_all();
        }
        left
    }

    fn set_cursor(&mut self, scanout: ScanoutId, cursor: &Cursor) {
        let screen = &mut self.0.screens()[scanout.index()];
        let before = std::mem::replace(&mut screen.cursor, cursor.clone());
        let Some(size) = screen.size else { return };
        for place in [&before, cursor].into_iter().filter_map(|cursor| cursor_place(cursor, size)) {
            screen.touch(place);
        }
        self.0.changed.notify_all();
    }
}

/// The pixels of a picture of `size` that `cursor` may cover.
fn cursor_place(cursor: &Cursor, size: Size) -> Option<Area> {
    cursor.image.as_ref()?;
    let edge = |at: i32| at.saturating_u32();
    let place = Rect::new(edge(cursor.x), edge(cursor.y), CURSOR_EXTENT, CURSOR_EXTENT);
    place.clip(Area::whole(size))
}

impl DisplayFrames {
    /// Size of what the scanout shows; `None` when it shows nothing.
    pub fn size(&self, scanout: ScanoutId) -> Option<Size> {
        self.0.screens()[scanout.index()].size
    }

    /// The budget that frames are charged to.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// Watches the scanout while the viewer lives. The first change that it reports is the size.
    pub fn view(&self, scanout: ScanoutId) -> Viewer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let viewer = NEXT.fetch_add(1, Ordering::Relaxed);
        let screen = &mut self.0.screens()[scanout.index()];
        screen.viewers.push(PendingView { viewer, damage: screen.whole(), resized: true });
        Viewer { shared: Arc::clone(&self.0), scanout, viewer }
    }
}

/// A change for a viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewChange {
    /// Size of the whole picture; none while there is nothing to see.
    pub size: Option<Size>,
    /// The size may differ from the one before.
    pub resized: bool,
    /// The pixels that changed, to be [read](Viewer::read); none when only the size did.
    pub damage: Option<Area>,
}

/// Follows one scanout.
pub struct Viewer {
    shared: Arc<HeadlessShared>,
    scanout: ScanoutId,
    viewer: u64,
}

impl Viewer {
    /// Asks for the whole picture again.
    pub fn want_all(&self) {
        let screen = &mut self.shared.screens()[self.scanout.index()];
        let whole = screen.whole();
        if let Some(pending) = screen.viewers.iter_mut().find(|p| p.viewer == self.viewer) {
            pending.damage = whole.or(pending.damage);
        }
    }

    /// Waits for something new, at most for `patience`; `None` when there is nothing.
    pub fn next(&self, patience: Duration) -> Option<ViewChange> {
        let index = self.scanout.index();
        let news = |screen: &Screen| {
            let pending = screen.viewers.iter().find(|pending| pending.viewer == self.viewer);
            pending.is_some_and(|p| p.resized || p.damage.is_some() && screen.complete())
        };
        let screens = self.shared.screens();
        let wait = self
            .shared
            .changed
            .wait_timeout_while(screens, patience, |screens| !news(&screens[index]));
        let (mut screens, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        let screen = &mut screens[index];
        let retired = std::mem::take(&mut screen.retired);
        let change = if timeout.timed_out() { None } else { screen.news_for(self.viewer) };
        drop(screens);
        drop(retired);
        change
    }

    /// Copies the pixels of `area` as they are now, with the cursor on them, to `out`, without
    /// padding. Missing pixels are black.
    ///
    /// Request one strip at a time: the device waits for the copy.
    pub fn read(&self, area: Area, out: &mut Vec<u8>) {
        let screen = &self.shared.screens()[self.scanout.index()];
        match &screen.frame {
            Some(frame) => frame.read(area, &screen.cursor, out),
            None => {
                let row = 4 * usize::from(area.size.width);
                out.clear();
                out.resize(row * usize::from(area.size.height), 0);
            }
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut screens = self.shared.screens();
        let screen = &mut screens[self.scanout.index()];
        screen.viewers.retain(|pending| pending.viewer != self.viewer);
        if !screen.watched() {
            screen.retired.extend(screen.frame.take());
        }
        let retired = std::mem::take(&mut screen.retired);
        drop(screens);
        drop(retired);
    }
}

#[cfg(test)]
mod tests;
