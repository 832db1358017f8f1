// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask rootfs`: initial RAM disks whose first process is the guest agent.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::error::{IoContext, Result};
use crate::paths;
use crate::testbed::{GuestProgram, Module, StockKernel};

/// Modules without which Debian's kernel sees nothing of a virtio-mmio guest.
const STOCK_GUEST_MODULES: [&str; 3] = ["virtio_mmio", "virtio_balloon", "zram"];

/// Those without which it sees neither disks nor network, vsock or random numbers.
const DEVICE_MODULES: [&str; 6] = [
    "virtio_blk",
    // ext4 asks for it by the name of the algorithm.
    "crc32c_generic",
    "ext4",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
];

/// Those without which it sees nothing of a display.
const DISPLAY_MODULES: [&str; 1] = ["virtio_gpu"];

/// Initial RAM disks of guests.
#[derive(Debug)]
pub(crate) struct GuestDisks {
    /// For our kernel, which has everything built in.
    pub(crate) ours: PathBuf,
    /// For Debian's.
    pub(crate) stock: PathBuf,
    /// For Debian's, with disks, network, vsock and random numbers.
    pub(crate) stock_devices: PathBuf,
    /// For Debian's, with a display and a program that draws on it.
    pub(crate) stock_display: PathBuf,
}

/// Writes the disks of guests; `drawing` is the program that draws.
pub(crate) fn guest_disks(
    agent: &Path,
    stock: &StockKernel,
    drawing: &GuestProgram,
) -> Result<GuestDisks> {
    let dir = paths::target().join("guest");
    std::fs::create_dir_all(&dir).doing("creating", &dir)?;
    let disks = GuestDisks {
        ours: dir.join("initrd"),
        stock: dir.join("initrd-stock"),
        stock_devices: dir.join("initrd-stock-devices"),
        stock_display: dir.join("initrd-stock-display"),
    };
    write(&disks.ours, agent, &[], |_| Ok(()))?;
    write(&disks.stock, agent, &stock.modules(&STOCK_GUEST_MODULES)?, |_| Ok(()))?;
    let modules = [&STOCK_GUEST_MODULES[..], &DEVICE_MODULES].concat();
    let ip = GuestProgram::installed("ip", "iproute2")?;
    write(&disks.stock_devices, agent, &stock.modules(&modules)?, |disk| {
        ip.files.iter().try_for_each(|(path, from)| disk.file(path, 0o755, from))
    })?;
    let modules = [&STOCK_GUEST_MODULES[..], &DISPLAY_MODULES].concat();
    write(&disks.stock_display, agent, &stock.modules(&modules)?, |disk| {
        drawing.files.iter().try_for_each(|(path, from)| disk.file(path, 0o755, from))
    })?;
    Ok(disks)
}

/// The archive type that [`write()`] hands to its caller.
pub(crate) type Disk = Archive<BufWriter<File>>;

/// Writes an initial RAM disk: the agent, the modules that it is to load, and what `add` adds.
pub(crate) fn write(
    to: &Path,
    agent: &Path,
    modules: &[Module],
    add: impl FnOnce(&mut Disk) -> std::io::Result<()>,
) -> Result<()> {
    let file = File::create(to).doing("creating", to)?;
    let mut disk = Archive::new(BufWriter::new(file));
    let contents = || -> std::io::Result<()> {
        disk.character_device("dev/console", (5, 1))?;
        disk.file("init", 0o755, agent)?;
        let mut list = String::new();
        for module in modules {
            let path = format!("lib/modules/{}.ko", module.name);
            disk.bytes(&path, 0o644, &module.contents)?;
            list += &format!("/{path}\n");
        }
        disk.bytes("etc/modules", 0o644, list.as_bytes())?;
        add(&mut disk)?;
        disk.finish().map(drop)
    };
    contents().doing("writing", to)
}
