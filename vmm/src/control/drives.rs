// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on disks.

use super::{Controller, failed};
use crate::api::drives::DriveAction;
use crate::api::{Refusal, Reply};
use crate::config::{DriveUpdate, RateLimiterConfig, drives};
use crate::host::files::open_disk;

impl Controller {
    pub(super) fn drive_action(&mut self, action: DriveAction) -> Result<Reply, Refusal> {
        match action {
            DriveAction::Set(drive) => {
                self.configure(|config| drives::set(&mut config.drives, drive))
            }
            DriveAction::Update(update) => self.update_drive(update),
            DriveAction::Remove(_) => Err(super::no_hot_unplug()),
        }
    }

    /// Changes a disk; the device's thread puts it into effect.
    fn update_drive(&mut self, update: DriveUpdate) -> Result<Reply, Refusal> {
        let id = &update.drive_id;
        let unknown = || Refusal::Failed(format!("Unknown drive `{id}`."));
        let disks = &self.vm()?.devices().drives;
        let disk = disks.iter().find(|disk| disk.id == *id).ok_or_else(unknown)?.clone();
        let config = self
            .config
            .drives
            .iter_mut()
            .find(|drive| drive.drive_id == *id)
            .ok_or_else(unknown)?;
        if let Some(path) = update.path_on_host {
            let named =
                |cause: &dyn std::fmt::Display| failed(format_args!("{}: {cause}", path.display()));
            let file = open_disk(&path, config.is_read_only).map_err(|error| named(&error))?;
            disk.handle.replace(file).map_err(|error| named(&error))?;
            config.path_on_host = Some(path);
        }
        if update.rate_limiter.is_some() {
            let (bytes, ops) = RateLimiterConfig::update(update.rate_limiter);
            disk.handle.limit(bytes, ops);
            config.rate_limiter =
                RateLimiterConfig::updated(config.rate_limiter, update.rate_limiter);
        }
        Ok(Reply::Done)
    }
}
