// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files that guests are started from: a folder that `cargo xtask` fills.

use std::path::{Path, PathBuf};

/// What every program is given that starts guests.
#[derive(Debug, Clone, clap::Args)]
pub struct Folders {
    /// Folder with the kernels, initial RAM disks and binaries
    #[arg(long)]
    pub payload: PathBuf,
    /// Folder for logs, and for what is measured
    #[arg(long)]
    pub logs: PathBuf,
}

/// The folder. In the outer machine it lies on the RAM disk.
#[derive(Debug, Clone)]
pub struct Payload {
    dir: PathBuf,
}

impl Payload {
    /// The payload in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Any file of it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Ballast's binary.
    #[must_use]
    pub fn ballast(&self) -> PathBuf {
        self.path("ballast")
    }

    /// Our kernel as ELF.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.path("vmlinux")
    }

    /// Our kernel as bzImage.
    #[must_use]
    pub fn bz_image(&self) -> PathBuf {
        self.path("bzImage")
    }

    /// The agent as initial RAM disk, for our kernel.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.path("initrd")
    }

    /// Debian's 6.12 kernel.
    #[must_use]
    pub fn debian_kernel(&self) -> PathBuf {
        self.path("debian-vmlinuz")
    }

    /// The agent as initial RAM disk, with the modules that Debian's kernel needs.
    #[must_use]
    pub fn debian_initrd(&self) -> PathBuf {
        self.path("debian-initrd")
    }

    /// The same, with the modules of a display and `modetest`.
    #[must_use]
    pub fn debian_display_initrd(&self) -> PathBuf {
        self.path("debian-display-initrd")
    }

    /// The same, with the modules of disks, network, vsock and random numbers, and `ip`.
    #[must_use]
    pub fn debian_devices_initrd(&self) -> PathBuf {
        self.path("debian-devices-initrd")
    }

    /// A Debian root file system, only to be read: tests boot copies of it.
    #[must_use]
    pub fn debian_image(&self) -> PathBuf {
        self.path("debian.ext4")
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
