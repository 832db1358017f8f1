// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's GPU, spoken to the way any DRM client does.
//!
//! - `uapi.rs`    requests and their structs
//! - `buffer.rs`  buffers of guest memory, mapped or not
//! - `screen.rs`  one scanout: its mode, what it shows

mod buffer;
mod screen;
mod uapi;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::Ioctl;

pub(crate) use buffer::{Buffer, Kind, Mapping};
pub(crate) use screen::{Frame, Screen};

/// An open card. Clones share the file, and with it all handles.
#[derive(Clone)]
pub(crate) struct Card(Arc<File>);

impl Card {
    /// Opens the first card.
    pub(crate) fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/dri/card0")?;
        let card = Self(Arc::new(file));
        // The first to open a card may set modes; leave that to the program with a screen.
        // SAFETY: the request has no argument.
        let _ = unsafe { card.request(uapi::DROP_MASTER, &mut ()) };
        Ok(card)
    }

    fn file(&self) -> &File {
        &self.0
    }

    /// # Safety
    /// `argument` must be the struct that `request` is for, and any address in it must be that of
    /// memory of which the kernel may read and write as much as the struct says.
    unsafe fn request<T>(&self, request: Ioctl, argument: &mut T) -> io::Result<()> {
        loop {
            // SAFETY: the argument lives through the call; the rest is our caller's promise.
            let result =
                unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
            if result >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
