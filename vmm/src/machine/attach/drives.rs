// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks, each on its own thread.

use std::io;
use std::sync::Arc;

use devices::block::{self, BlockConfig, BlockDevice, BlockHandle, DiskImage, ImageError};
use devices::virtio::{DeviceLock, SourceRunner};

use crate::config::{CacheType, DriveConfig, ImageFormat, IoEngine, RateLimiterConfig, drives};
use crate::host::files::open_disk;
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;

/// A disk, as requests reach it.
#[derive(Debug, Clone)]
pub struct Drive {
    /// Its name.
    pub id: String,
    /// The device.
    pub handle: BlockHandle,
}

/// A disk cannot be made.
#[derive(Debug, thiserror::Error)]
enum DriveError {
    /// Its image cannot be used.
    #[error("{id}: {path}: {cause}")]
    Image { id: String, path: String, cause: ImageError },
    /// Any other error of the host.
    #[error("{id}: {cause}")]
    Host { id: String, cause: io::Error },
}

/// Adds the disks of the configuration to `machine`, the root device first.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Vec<Drive>, BuildError> {
    let config = machine.config;
    drives::in_order(&config.drives).map(|drive| attach_one(machine, drive)).collect()
}

fn attach_one(machine: &mut Assembly<'_>, wanted: &DriveConfig) -> Result<Drive, BuildError> {
    let id = wanted.drive_id.clone();
    let host = |cause| BuildError::device("drives")(DriveError::Host { id: id.clone(), cause });
    let workers = machine.config.thread_shares().disk_workers;
    if wanted.io_engine == IoEngine::Async {
        machine.charge_threads(workers.into())?;
    }
    let config = BlockConfig {
        image: open(wanted).map_err(BuildError::device("drives"))?,
        cache: match wanted.cache_type {
            CacheType::Unsafe => block::CacheType::Unsafe,
            CacheType::Writeback => block::CacheType::Writeback,
        },
        engine: match wanted.io_engine {
            IoEngine::Sync => block::IoEngine::Sync,
            IoEngine::Async => block::IoEngine::Async,
        },
        limiter: RateLimiterConfig::build(wanted.rate_limiter),
        queues: wanted.queues,
        workers,
    };
    let device = BlockDevice::new(config).map_err(host)?;
    let handle = device.handle();
    let sources = device.sources().map_err(host)?;
    let home = Home::Thread(format!("block-{id}"));
    let transport = machine.add_virtio(Arc::new(DeviceLock::new(device)), &home)?;
    machine.subscribe(Box::new(SourceRunner::new(transport, sources)), &home);
    Ok(Drive { id, handle })
}

fn open(wanted: &DriveConfig) -> Result<DiskImage, DriveError> {
    let id = wanted.drive_id.clone();
    let Some(path) = &wanted.path_on_host else {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "no image");
        return Err(DriveError::Host { id, cause });
    };
    let opened = match (open_disk(path, wanted.is_read_only), wanted.format) {
        (Err(error), _) => Err(error.into()),
        (Ok(file), ImageFormat::Raw) => DiskImage::raw(file, wanted.is_read_only),
        (Ok(file), ImageFormat::Qcow2) => {
            DiskImage::qcow2(file, path, wanted.is_read_only, wanted.backing_files)
        }
    };
    opened.map_err(|cause| DriveError::Image { id, path: path.display().to_string(), cause })
}
