// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scanouts of a device: their modes, surfaces and cursors, and the display that shows them.

use std::sync::Arc;

use super::edid::{self, edid};
use super::protocol::{MAX_SCANOUTS, ResourceId};
use super::response::{DisplayOne, Fault};
use super::scanout::{ScanoutView, Surface};
use crate::display::{Area, CURSOR_BYTES, Cursor, Display, Rect, ScanoutId, Size};
use crate::virtio::{Deadline, Progress};

/// One scanout.
#[derive(Debug, Default)]
struct Scanout {
    /// The mode that is announced to the guest; none when nothing is plugged in.
    mode: Option<Size>,
    /// What the guest has put on it.
    surface: Option<Surface>,
    cursor: Cursor,
}

/// All scanouts, and where they are shown.
pub(super) struct Scanouts {
    list: Vec<Scanout>,
    display: Box<dyn Display>,
}

/// The image of a cursor.
pub(super) type CursorImage = Arc<[u8; CURSOR_BYTES]>;

impl Scanouts {
    /// `count` scanouts, at most [`MAX_SCANOUTS`], each with `mode`.
    pub(super) fn new(count: usize, mode: Size, display: Box<dyn Display>) -> Self {
        let scanout = |_| Scanout { mode: Some(mode), ..Scanout::default() };
        Self { list: (0..count.min(MAX_SCANOUTS)).map(scanout).collect(), display }
    }

    /// Their number.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// The checked number of the scanout that a guest or a person names.
    pub(super) fn find(&self, raw: u32) -> Result<ScanoutId, Fault> {
        ScanoutId::new(raw).filter(|id| id.index() < self.list.len()).ok_or(Fault::NoScanout)
    }

    fn get(&self, id: ScanoutId) -> Option<&Scanout> {
        self.list.get(id.index())
    }

    /// The mode of a scanout; `None` when it is unplugged.
    pub(super) fn mode(&self, id: ScanoutId) -> Option<Size> {
        self.get(id)?.mode
    }

    /// What a scanout shows.
    pub(super) fn surface(&self, id: ScanoutId) -> Option<Surface> {
        self.get(id)?.surface
    }

    /// The cursor of a scanout.
    pub(super) fn cursor(&self, id: ScanoutId) -> Cursor {
        self.get(id).map(|scanout| scanout.cursor.clone()).unwrap_or_default()
    }

    /// Announces another mode for a scanout, or unplugs it; true when that is a change.
    pub(super) fn set_mode(&mut self, raw: u32, mode: Option<Size>) -> Result<bool, Fault> {
        let id = self.find(raw)?;
        Ok(std::mem::replace(&mut self.list[id.index()].mode, mode) != mode)
    }

    /// The answer to GET_DISPLAY_INFO: scanouts stand side by side.
    pub(super) fn display_info(&self) -> [DisplayOne; MAX_SCANOUTS] {
        let mut info = [DisplayOne::default(); MAX_SCANOUTS];
        let mut x = 0;
        for (one, scanout) in info.iter_mut().zip(&self.list) {
            let Some(mode) = scanout.mode else { continue };
            *one = DisplayOne { rect: Rect { x, ..Rect::whole(mode) }, enabled: true };
            x += u32::from(mode.width);
        }
        info
    }

    /// The EDID of a scanout. An unplugged one has none, which is an answer of length 0 and not an
    /// error: Linux asks for all scanouts at each change, and logs errors.
    pub(super) fn edid(&self, raw: u32) -> Result<Option<Box<[u8; edid::BLOCK_SIZE]>>, Fault> {
        let id = self.find(raw)?;
        Ok(self.mode(id).map(|mode| Box::new(edid(mode, raw))))
    }

    /// Makes a scanout show `surface`, or nothing.
    pub(super) fn show(&mut self, id: ScanoutId, surface: Option<Surface>) {
        if let Some(scanout) = self.list.get_mut(id.index()) {
            scanout.surface = surface;
            self.display.set_size(id, surface.map(|surface| surface.area.size));
        }
    }

    /// Scanouts that show a part of resource `resource`.
    pub(super) fn showing(
        &self,
        resource: ResourceId,
    ) -> impl Iterator<Item = (ScanoutId, Surface)> + '_ {
        let scanouts = (0..).map_while(ScanoutId::new).zip(&self.list);
        scanouts
            .filter_map(|(id, scanout)| Some((id, scanout.surface?)))
            .filter(move |(_, surface)| surface.resource == resource)
    }

    /// Scanouts that show resource `resource` go dark.
    pub(super) fn forget(&mut self, resource: ResourceId) {
        for id in self.showing(resource).map(|(id, _)| id).collect::<Vec<_>>() {
            self.show(id, None);
        }
    }

    /// Drops everything that the guest created; modes are kept.
    pub(super) fn reset(&mut self) {
        for id in (0..).map_while(ScanoutId::new).take(self.list.len()) {
            self.show(id, None);
            self.change_cursor(id, |cursor| *cursor = Cursor::default());
        }
    }

    /// Sets or removes the image of a scanout's cursor.
    pub(super) fn set_cursor(
        &mut self,
        id: ScanoutId,
        image: Option<CursorImage>,
        (hot_x, hot_y): (u32, u32),
        (x, y): (i32, i32),
    ) {
        self.change_cursor(id, |cursor| *cursor = Cursor { x, y, hot_x, hot_y, image });
    }

    /// Moves a scanout's cursor. Linux sends the image's corner, which may be left of or above the
    /// screen.
    pub(super) fn move_cursor(&mut self, id: ScanoutId, (x, y): (i32, i32)) {
        self.change_cursor(id, |cursor| (cursor.x, cursor.y) = (x, y));
    }

    fn change_cursor(&mut self, id: ScanoutId, change: impl FnOnce(&mut Cursor)) {
        if let Some(scanout) = self.list.get_mut(id.index()) {
            change(&mut scanout.cursor);
            self.display.set_cursor(id, &scanout.cursor);
        }
    }

    /// Whether a viewer would see a flush.
    pub(super) fn watched(&self, id: ScanoutId) -> bool {
        self.display.watched(id)
    }

    /// Copies the pixels of `damage` to the display; returns the remaining damage.
    pub(super) fn flush(
        &mut self,
        id: ScanoutId,
        damage: Area,
        view: &ScanoutView<'_>,
        deadline: &mut Deadline,
    ) -> Option<Area> {
        self.display.flush(id, damage, view, deadline)
    }

    /// Copies missing parts of the scanout's picture to the display.
    pub(super) fn fill(
        &mut self,
        id: ScanoutId,
        view: &ScanoutView<'_>,
        deadline: &mut Deadline,
    ) -> Progress {
        self.display.fill(id, view, deadline)
    }

    /// All surfaces.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn surfaces(&self) -> impl Iterator<Item = Surface> + '_ {
        self.list.iter().filter_map(|scanout| scanout.surface)
    }
}

#[cfg(test)]
mod tests {
    use mm::budget::Budget;

    use super::*;
    use crate::display::Headless;

    #[test]
    fn scanouts_stand_side_by_side_and_unplugged_ones_take_no_room() {
        let display = Box::new(Headless::new(Budget::bytes("test", 0)).0);
        let mut scanouts = Scanouts::new(3, Size::new(640, 480), display);
        assert_eq!(scanouts.set_mode(1, None), Ok(true));
        let info = scanouts.display_info();
        assert_eq!(info[0].rect, Rect::new(0, 0, 640, 480));
        assert_eq!(info[1], DisplayOne::default());
        assert_eq!(info[2].rect, Rect::new(640, 0, 640, 480));
        assert!(info[3..].iter().all(|one| !one.enabled));
        assert!(scanouts.find(3).is_err() && scanouts.find(u32::MAX).is_err());
    }
}
