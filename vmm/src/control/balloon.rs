// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the balloon.

use std::time::Duration;

use devices::balloon::{Balloon, Statistics};
use devices::virtio::Locked;
use mm::units::{Pages, SaturatingInto};

use super::{Controller, done, failed};
use crate::api::balloon::{BalloonAction, BalloonReply, BalloonStats, GuestStats, HintingStatus};
use crate::api::{Refusal, Reply};
use crate::config::BalloonConfig;

/// Pages of 4 KiB in one MiB.
const PAGES_PER_MIB: u64 = 256;

impl Controller {
    pub(super) fn balloon_action(&mut self, action: BalloonAction) -> Result<Reply, Refusal> {
        match action {
            BalloonAction::Get => Ok(BalloonReply::Config(self.balloon_config()?).into()),
            BalloonAction::Set(balloon) => self.configure(|config| config.balloon = Some(balloon)),
            BalloonAction::Update(update) => {
                let target = Pages(u64::from(update.amount_mib) * PAGES_PER_MIB);
                self.client_takes_balloon(target);
                done(self.balloon()?.set_target(target))
            }
            BalloonAction::GetStatistics => self.balloon_statistics(),
            BalloonAction::UpdateStatistics(update) => {
                let interval = Duration::from_secs(update.stats_polling_interval_s.into());
                done(self.balloon()?.set_stats_interval(interval))
            }
            BalloonAction::StartHinting(how) => {
                done(self.balloon()?.start_hinting(how.acknowledge_on_stop))
            }
            BalloonAction::GetHinting => {
                let status = self.balloon()?.hinting_status().map_err(failed)?;
                let (host_cmd, guest_cmd) = (status.host_cmd, status.guest_cmd);
                Ok(BalloonReply::Hinting(HintingStatus { host_cmd, guest_cmd }).into())
            }
            BalloonAction::StopHinting => done(self.balloon()?.stop_hinting()),
        }
    }

    pub(super) fn balloon(&self) -> Result<Locked<'_, Balloon>, Refusal> {
        let balloon = self.vm()?.balloon().ok_or(Refusal::NoDevice("balloon"))?;
        Ok(balloon.lock())
    }

    /// The section with the present target.
    pub(super) fn balloon_config(&self) -> Result<BalloonConfig, Refusal> {
        let Some(configured) = &self.config.balloon else {
            return Err(Refusal::NoDevice("balloon"));
        };
        if self.vm.is_none() {
            return Ok(configured.clone());
        }
        let now = self.balloon()?.current_config();
        Ok(BalloonConfig {
            amount_mib: mib(now.target),
            deflate_on_oom: now.deflate_on_oom,
            stats_polling_interval_s: now.stats_interval.as_secs().saturating_u16(),
            free_page_hinting: now.free_page_hinting,
            free_page_reporting: now.free_page_reporting,
            blocks: now.blocks,
        })
    }

    fn balloon_statistics(&self) -> Result<Reply, Refusal> {
        let balloon = self.balloon()?;
        if balloon.stats_interval().is_zero() {
            let why = "Statistics are off: set stats_polling_interval_s before the start.";
            return Err(Refusal::Failed(why.into()));
        }
        let (target, actual) = (balloon.target_pages(), balloon.actual());
        Ok(BalloonReply::Statistics(Box::new(BalloonStats {
            target_pages: target.0.saturating_u32(),
            actual_pages: actual.0.saturating_u32(),
            target_mib: mib(target),
            actual_mib: mib(actual),
            waiting_for_host_pages: balloon.waiting_for_host().0.saturating_u32(),
            guest: balloon.statistics().into(),
        }))
        .into())
    }
}

/// Whole MiB in `pages`, as Firecracker's fields have them.
fn mib(pages: Pages) -> u32 {
    (pages.0 / PAGES_PER_MIB).saturating_u32()
}

impl From<&Statistics> for GuestStats {
    fn from(told: &Statistics) -> Self {
        Self {
            swap_in: told.swap_in,
            swap_out: told.swap_out,
            major_faults: told.major_faults,
            minor_faults: told.minor_faults,
            free_memory: told.free_memory,
            total_memory: told.total_memory,
            available_memory: told.available_memory,
            disk_caches: told.disk_caches,
            hugetlb_allocations: told.hugetlb_allocations,
            hugetlb_failures: told.hugetlb_failures,
            oom_kill: told.oom_kill,
            alloc_stall: told.alloc_stall,
            async_scan: told.async_scan,
            direct_scan: told.direct_scan,
            async_reclaim: told.async_reclaim,
            direct_reclaim: told.direct_reclaim,
            cma_total: told.cma_total,
            cma_free: told.cma_free,
            cma_allocated: told.cma_allocated,
        }
    }
}
