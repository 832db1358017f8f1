// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks: file systems on them, and files with a pattern that is made durable and checked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::reason;
use crate::console::Answer;
use crate::region::{PAGE, page_bytes};

/// `disk-mount DEVICE TYPE FOLDER`.
pub(crate) fn mount_at(device: &str, kind: &str, folder: &str) -> Answer {
    std::fs::create_dir_all(folder).map_err(|e| reason("creating the folder")(&e))?;
    mount(device, folder, kind, MountFlags::empty(), None).map_err(|e| reason("mounting")(&e))?;
    Ok(vec![])
}

/// `disk-unmount FOLDER`.
pub(crate) fn unmount_at(folder: &str) -> Answer {
    unmount(folder, UnmountFlags::empty()).map_err(|e| reason("unmounting")(&e))?;
    Ok(vec![])
}

/// `disk-write PATH SIZE SEED`: writes a pattern to a file or a whole device and makes it durable.
pub(crate) fn write(path: &str, bytes: usize, seed: usize) -> Answer {
    let doing = reason("writing");
    let mut file = OpenOptions::new()
        .write(true)
        .create(!Path::new(path).starts_with("/dev"))
        .open(path)
        .map_err(|e| doing(&e))?;
    for index in 0..bytes / PAGE {
        file.write_all(&page_bytes(seed as u64, index)).map_err(|e| doing(&e))?;
    }
    file.sync_all().map_err(|e| reason("syncing")(&e))?;
    Ok(vec![format!("pages={}", bytes / PAGE)])
}

/// `disk-verify PATH SIZE SEED`: drops what the guest has cached, and reads; `pages=`, `damaged=`.
pub(crate) fn verify(path: &str, bytes: usize, seed: usize) -> Answer {
    std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| reason("dropping caches")(&e))?;
    let mut file = File::open(path).map_err(|e| reason("opening")(&e))?;
    let mut damaged = 0;
    let mut page = vec![0; PAGE];
    for index in 0..bytes / PAGE {
        file.read_exact(&mut page).map_err(|e| reason("reading")(&e))?;
        damaged += usize::from(page != page_bytes(seed as u64, index));
    }
    Ok(vec![format!("pages={}", bytes / PAGE), format!("damaged={damaged}")])
}
