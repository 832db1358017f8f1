// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The display, on the main thread, with its window above RAM and the socket where scanout 0 can
//! be watched by VNC.

use std::io;
use std::path::Path;
use std::sync::Arc;

use devices::display::vnc::{MAX_CLIENTS, Patience, VncView, serve};
use devices::display::{DisplayFrames, Headless, ScanoutId};
use devices::gpu::{AnonymousMemory, Gpu, GpuLimits, GpuParts, GpuSettings, mode, refresh};
use devices::virtio::{DeviceLock, SharedRegion};
use mm::budget::Budget;
use mm::units::Bytes;

use crate::arch::layout;
use crate::host::sockets::{Listener, SocketError, SocketFile};
use crate::kvm::window::{KvmWindow, MAX_SLOTS};
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;

/// The display device and its viewers.
pub struct Screens {
    /// The device. Viewers and the API's thread also lock it, for one strip of a picture at a time.
    pub gpu: Arc<DeviceLock<Gpu>>,
    /// Its frames, for any thread.
    pub frames: DisplayFrames,
    /// Where they can be watched, if anywhere.
    pub vnc: Option<VncSocket>,
}

/// More scanouts than can be counted.
#[derive(Debug, thiserror::Error)]
#[error("too many scanouts: {0}")]
struct TooManyScanouts(u32);

/// Adds the display to `machine`, if one is configured.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Option<Screens>, BuildError> {
    let Some(wanted) = &machine.config.gpu else { return Ok(None) };
    let ram = Arc::clone(&machine.ram);
    let region = SharedRegion { addr: ram.layout().windows_start(), len: layout::GPU_WINDOW_SIZE };
    let scanouts = usize::try_from(wanted.scanouts)
        .map_err(|_| BuildError::device("gpu")(TooManyScanouts(wanted.scanouts)))?;
    let settings = GpuSettings {
        scanouts,
        mode: mode(wanted.width_px, wanted.height_px).map_err(BuildError::device("gpu"))?,
        limits: GpuLimits::default(),
        window: Some(region),
        cma: ram.layout().cma().into_iter().collect(),
    };
    // Everything that the guest and its viewers cause is charged to one budget.
    let budget = Bytes::saturating_from_mib(machine.config.memory.host_budget_mib);
    let budget = Budget::bytes("gpu", budget.0);
    let mappings = Budget::count("gpu-mappings", MAX_SLOTS.into());
    machine.budgets.extend([Arc::clone(&budget), Arc::clone(&mappings)]);
    let (display, frames) = Headless::new(Arc::clone(&budget));
    let parts = GpuParts {
        host_memory: Box::new(AnonymousMemory),
        window: Some(Box::new(KvmWindow::new(region, Arc::clone(&machine.vm), ram))),
        display: Box::new(display),
        budget,
        mappings,
    };
    let gpu = Gpu::new(settings, parts).map_err(BuildError::device("gpu"))?;
    let gpu = Arc::new(DeviceLock::new(gpu));
    machine.add_virtio(gpu.clone(), &Home::Main)?;
    let vnc = match &wanted.vnc_socket {
        Some(path) => {
            let places = Budget::count("vnc-clients", MAX_CLIENTS);
            machine.budgets.push(Arc::clone(&places));
            machine.charge_threads(1)?;
            let threads = Arc::clone(&machine.host_threads);
            let socket = VncSocket::open(path, &frames, &gpu, places, threads);
            Some(socket.map_err(BuildError::device("gpu"))?)
        }
        None => None,
    };
    Ok(Some(Screens { gpu, frames, vnc }))
}

/// The socket cannot be made or served.
#[derive(Debug, thiserror::Error)]
pub enum VncError {
    /// It cannot be made.
    #[error("VNC socket {0}")]
    Socket(#[from] SocketError),
    /// There is no thread for it.
    #[error("VNC thread: {0}")]
    Thread(io::Error),
    /// There is nothing to show.
    #[error("VNC: the display has no scanout 0")]
    NoScanout,
}

/// The viewers' socket; its file is removed on drop.
pub struct VncSocket(SocketFile);

impl VncSocket {
    /// Serves scanout 0 of `gpu`, whose display gives `frames`, at `path`, to as many clients as
    /// `places` has room for, and `threads` threads.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be made, or the host has no thread left.
    pub fn open(
        path: &Path,
        frames: &DisplayFrames,
        gpu: &Arc<DeviceLock<Gpu>>,
        places: Arc<Budget>,
        threads: Arc<Budget>,
    ) -> Result<Self, VncError> {
        let scanout = ScanoutId::new(0).ok_or(VncError::NoScanout)?;
        let Listener { socket, file } = Listener::bind(path)?;
        // The device may go before its viewers do.
        let gpu = Arc::downgrade(gpu);
        let refresh = move |id| {
            if let Some(gpu) = gpu.upgrade() {
                refresh(&gpu, id);
            }
        };
        let (frames, refresh, patience) = (frames.clone(), Arc::new(refresh), Patience::default());
        let view = VncView { frames, scanout, refresh, patience, places, threads };
        serve(socket, view).map_err(VncError::Thread)?;
        Ok(Self(file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
