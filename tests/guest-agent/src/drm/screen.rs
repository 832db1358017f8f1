// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One scanout.

use std::io;

use super::uapi::{
    ADD_FB, CONNECTED, CardResources, Connector, Crtc, DIRTY_FB, DirtyFb, Framebuffer,
    GET_CONNECTOR, GET_RESOURCES, Mode, PAGE_FLIP, PageFlip, REMOVE_FB, SET_CRTC, SET_MASTER,
};
use super::{Buffer, Card};

/// Most scanouts that the standard allows a device.
const SCANOUTS: usize = 16;
/// Modes that a connector may have before we look at the first ones only.
const MODES: usize = 64;

/// A CRTC with its connector and the mode that the connector prefers.
pub(crate) struct Screen {
    card: Card,
    crtc: u32,
    connector: u32,
    mode: Mode,
}

/// A buffer that a screen can show; forgotten by the driver when dropped.
pub(crate) struct Frame {
    card: Card,
    id: u32,
}

impl Screen {
    /// The screen of scanout `index`.
    pub(crate) fn new(card: &Card, index: usize) -> io::Result<Self> {
        // SAFETY: the request has no argument.
        unsafe { card.request(SET_MASTER, &mut ()) }?;

        let mut crtcs = [0_u32; SCANOUTS];
        let mut connectors = [0_u32; SCANOUTS];
        let mut resources = CardResources {
            crtc_ids: crtcs.as_mut_ptr() as u64,
            connector_ids: connectors.as_mut_ptr() as u64,
            crtcs: SCANOUTS as u32,
            connectors: SCANOUTS as u32,
            ..CardResources::default()
        };
        // SAFETY: the struct is that request's; both arrays are as long as it says.
        unsafe { card.request(GET_RESOURCES, &mut resources) }?;
        let count = (resources.crtcs.min(resources.connectors) as usize).min(SCANOUTS);
        if index >= count {
            return Err(io::Error::other(format!("{count} scanouts only")));
        }

        let mut modes = [Mode::default(); MODES];
        let mut connector = Connector {
            connector_id: connectors[index],
            mode_ids: modes.as_mut_ptr() as u64,
            modes: MODES as u32,
            ..Connector::default()
        };
        // SAFETY: the struct is that request's; the array is as long as it says.
        unsafe { card.request(GET_CONNECTOR, &mut connector) }?;
        if connector.connection != CONNECTED || connector.modes == 0 {
            return Err(io::Error::other(format!("scanout {index} is not connected")));
        }
        Ok(Self {
            card: card.clone(),
            crtc: crtcs[index],
            connector: connectors[index],
            mode: modes[0],
        })
    }

    /// Width and height in pixels.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.mode.hdisplay.into(), self.mode.vdisplay.into())
    }

    /// Makes a buffer one that can be shown. It must have the screen's size.
    pub(crate) fn frame(&self, buffer: &Buffer) -> io::Result<Frame> {
        let (width, height) = self.size();
        let mut framebuffer = Framebuffer {
            width,
            height,
            pitch: buffer.pitch(),
            bpp: 32,
            depth: 24,
            handle: buffer.handle(),
            fb_id: 0,
        };
        // SAFETY: the struct is that request's and has no addresses in it.
        unsafe { self.card.request(ADD_FB, &mut framebuffer) }?;
        Ok(Frame { card: self.card.clone(), id: framebuffer.fb_id })
    }

    /// Sets the mode and shows the frame.
    pub(crate) fn show(&self, frame: &Frame) -> io::Result<()> {
        let connectors = [self.connector];
        let mut crtc = Crtc {
            set_connectors: connectors.as_ptr() as u64,
            connectors: 1,
            crtc_id: self.crtc,
            fb_id: frame.id,
            mode_valid: 1,
            mode: self.mode,
            ..Crtc::default()
        };
        // SAFETY: the struct is that request's; the array has the one element that it says.
        unsafe { self.card.request(SET_CRTC, &mut crtc) }
    }

    /// Shows another frame from the next refresh on.
    pub(crate) fn flip(&self, frame: &Frame) -> io::Result<()> {
        let mut flip = PageFlip { crtc_id: self.crtc, fb_id: frame.id, ..PageFlip::default() };
        // SAFETY: the struct is that request's and has no addresses in it.
        unsafe { self.card.request(PAGE_FLIP, &mut flip) }
    }

    /// Tells the device that the frame shown has changed.
    pub(crate) fn flush(&self, frame: &Frame) -> io::Result<()> {
        let mut dirty = DirtyFb { fb_id: frame.id, ..DirtyFb::default() };
        // SAFETY: the struct is that request's; its one address is null, of no elements.
        unsafe { self.card.request(DIRTY_FB, &mut dirty) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: the request takes a number.
        let _ = unsafe { self.card.request(REMOVE_FB, &mut self.id) };
    }
}
