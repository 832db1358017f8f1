// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `drives`: disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rate_limiter::RateLimiterConfig;
use super::rules::{Check, Faults, device_id};
use crate::host::files::open_disk;

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Its name: letters, digits and underscores.
    pub drive_id: String,
    /// Whether the root file system is on this disk: it becomes `/dev/vda` and is named on the
    /// kernel command line.
    pub is_root_device: bool,
    /// UUID of the root file system's partition, if the disk is partitioned.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// Whether the disk is read-only.
    #[serde(default)]
    pub is_read_only: bool,
    /// Whether flushes reach the disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The image: a file or a block device.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// Limits of bytes and requests.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiterConfig>,
    /// I/O engine.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// Socket of a vhost-user back end: not supported.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Format of the image. It is never detected, as a guest could write a header into its disk.
    /// Ballast extension, like the next two; omitted if it has the default value.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: ImageFormat,
    /// Whether to open the backing file that a qcow2 image names.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backing_files: bool,
    /// Request queues, 1 to 16.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

fn is_one(count: &u16) -> bool {
    *count == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether the guest's flushes reach the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CacheType {
    /// Flushes are not offered to the guest.
    #[default]
    Unsafe,
    /// The guest's flushes reach the host's disk.
    Writeback,
}

/// I/O engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum IoEngine {
    /// By system calls that wait.
    Sync,
    /// By io_uring, and by system calls where the host does not permit it.
    #[default]
    Async,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageFormat {
    /// Sectors, one after the other.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// Changes to a disk while the guest runs (`PATCH /drives/{id}`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Its name.
    pub drive_id: String,
    /// A new image, or the same path again after a change of size.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// New limits; an omitted bucket is unchanged.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// Puts `drive` in the place of the one of its name, or at the end.
pub fn set(drives: &mut Vec<DriveConfig>, drive: DriveConfig) {
    match drives.iter_mut().find(|known| known.drive_id == drive.drive_id) {
        Some(known) => *known = drive,
        None => drives.push(drive),
    }
}

/// Disks in the order in which the guest finds them: the root device first.
pub fn in_order(drives: &[DriveConfig]) -> impl Iterator<Item = &DriveConfig> {
    let root = drives.iter().filter(|drive| drive.is_root_device);
    root.chain(drives.iter().filter(|drive| !drive.is_root_device))
}

/// Kernel arguments for the root device: `root=` and `ro` or `rw`.
pub fn root_argument(drives: &[DriveConfig]) -> Option<String> {
    let root = drives.iter().find(|drive| drive.is_root_device)?;
    let device = match &root.partuuid {
        Some(uuid) => format!("PARTUUID={uuid}"),
        None => "/dev/vda".to_owned(),
    };
    Some(format!("root={device} {}", if root.is_read_only { "ro" } else { "rw" }))
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_, Vec<DriveConfig>>, faults: &mut Faults) {
    let drives = check.section;
    for (at, drive) in drives.iter().enumerate() {
        device_id("drives.drive_id", &drive.drive_id, faults);
        if drives[..at].iter().any(|other| other.drive_id == drive.drive_id) {
            faults.add("drives.drive_id", format!("`{}` is given twice", drive.drive_id));
        }
        if !(1..=devices::block::MAX_QUEUES).contains(&drive.queues) {
            let problem = format!("{}: give 1 to {}", drive.queues, devices::block::MAX_QUEUES);
            faults.add("drives.queues", problem);
        }
        let uuid_fits = |uuid: &String| {
            uuid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && (1..=64).contains(&uuid.len())
        };
        if drive.partuuid.as_ref().is_some_and(|uuid| !uuid_fits(uuid)) {
            faults.add("drives.partuuid", "not a UUID: give letters, digits and hyphens");
        }
        image_rules(check, drive, faults);
    }
    if drives.iter().filter(|drive| drive.is_root_device).count() > 1 {
        faults.add("drives.is_root_device", "A root block device already exists!");
    }
}

fn image_rules(check: &Check<'_, Vec<DriveConfig>>, drive: &DriveConfig, faults: &mut Faults) {
    if drive.socket.is_some() {
        faults.add("drives.socket", "vhost-user disks are not supported: give path_on_host");
        return;
    }
    let Some(path) = &drive.path_on_host else {
        return faults.add("drives.path_on_host", "missing: give the path of the image");
    };
    if !looks_at(check, &drive.drive_id) {
        return;
    }
    if let Err(cause) = open_disk(path, drive.is_read_only) {
        faults.add("drives.path_on_host", format!("{}: {cause}", path.display()));
    }
}

/// Whether to check the image of disk `id`: at the start, and when that disk changes.
fn looks_at(check: &Check<'_, Vec<DriveConfig>>, id: &str) -> bool {
    fn find<'a>(drives: &'a [DriveConfig], id: &str) -> Option<&'a DriveConfig> {
        drives.iter().find(|drive| drive.drive_id == id)
    }
    check.before.is_none_or(|before| find(before, id) != find(check.section, id))
}
