// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Swap on zram: what a host has that compresses any program's memory (`CONFIG_ZRAM`).

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const PAGE: u64 = 4096;

/// A compressed swap device in use; no longer used once dropped.
#[derive(Debug)]
pub struct ZramSwap {
    device: PathBuf,
    settings: PathBuf,
}

impl ZramSwap {
    /// Makes `bytes` of swap on the first zram device, compressed by `codec`.
    pub fn new(bytes: u64, codec: &str) -> Result<Self> {
        let swap = Self { device: "/dev/zram0".into(), settings: "/sys/block/zram0".into() };
        let set = |name: &str, value: &str| {
            let path = swap.settings.join(name);
            fs::write(&path, value).map_err(Error::io(format!("writing {}", path.display())))
        };
        set("comp_algorithm", codec)?;
        set("disksize", &bytes.to_string())?;
        mark(&swap.device, bytes)?;
        let path = c_path(&swap.device)?;
        // SAFETY: the path is a C string; the call touches no memory of this process.
        if unsafe { libc::swapon(path.as_ptr(), 0) } != 0 {
            return Err(Error::io("swapon")(std::io::Error::last_os_error()));
        }
        Ok(swap)
    }
}

/// Writes the header that makes a device swap space (include/linux/swap.h, `union swap_header`).
fn mark(device: &Path, bytes: u64) -> Result<()> {
    let mut page = vec![0; PAGE as usize];
    let last = u32::try_from(bytes / PAGE - 1).unwrap_or(u32::MAX);
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last.to_le_bytes());
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    let doing = || Error::io(format!("writing {}", device.display()));
    let file = OpenOptions::new().write(true).open(device).map_err(doing())?;
    file.write_all_at(&page, 0).and_then(|()| file.sync_all()).map_err(doing())
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| Error::Check(e.to_string()))
}

impl Drop for ZramSwap {
    fn drop(&mut self) {
        if let Ok(path) = c_path(&self.device) {
            // SAFETY: as for swapon.
            unsafe { libc::swapoff(path.as_ptr()) };
        }
        // It is of no consequence that the device stays: the machine is about to end.
        let _ = fs::write(self.settings.join("reset"), "1");
    }
}
