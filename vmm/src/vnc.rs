// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket where a person can watch scanout 0 of a guest by VNC.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use devices::display::vnc::serve;
use devices::display::{Frames, ScanoutId};
use devices::gpu::Gpu;

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("VNC socket {}: {source}", path.display())]
pub struct VncError {
    path: PathBuf,
    source: io::Error,
}

/// A socket that viewers connect to; its file goes with it.
pub struct VncSocket(PathBuf);

impl VncSocket {
    /// Serves scanout 0 of `gpu`, whose display gives `frames`, at `path`, which must not exist yet.
    pub fn open(path: &Path, frames: &Frames, gpu: &Arc<Mutex<Gpu>>) -> Result<Self, VncError> {
        let failed = |source| VncError { path: path.to_owned(), source };
        let scanout = ScanoutId::new(0).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        // The device may go before its viewers do.
        let gpu = Arc::downgrade(gpu);
        let refresh = move |id| {
            if let Some(gpu) = gpu.upgrade() {
                gpu.lock().unwrap_or_else(PoisonError::into_inner).refresh(id);
            }
        };
        serve(path, frames.clone(), scanout, Arc::new(refresh)).map_err(failed)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for VncSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the VNC socket stays behind");
        }
    }
}
