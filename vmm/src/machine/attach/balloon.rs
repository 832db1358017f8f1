// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon, on the main thread, with its timer.

use std::sync::Arc;
use std::time::Duration;

use devices::balloon::{Balloon, BalloonConfig, MemoryReclaim, TimerRunner};
use devices::virtio::DeviceLock;
use mm::budget::Budget;
use mm::units::Bytes;

use crate::config::HostLimits;
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;

/// Adds the balloon to `machine`, if one is configured.
pub(super) fn attach(
    machine: &mut Assembly<'_>,
) -> Result<Option<Arc<DeviceLock<Balloon>>>, BuildError> {
    let Some(wanted) = &machine.config.balloon else { return Ok(None) };
    let settings = BalloonConfig {
        target: Bytes::saturating_from_mib(wanted.amount_mib.into()).as_pages(),
        deflate_on_oom: wanted.deflate_on_oom,
        stats_interval: Duration::from_secs(wanted.stats_polling_interval_s.into()),
        free_page_hinting: wanted.free_page_hinting,
        free_page_reporting: wanted.free_page_reporting,
        blocks: wanted.blocks,
        evacuation: wanted.blocks,
    };
    let reclaim: Box<dyn MemoryReclaim> = Box::new(Arc::clone(&machine.ram));
    let shares = machine.config.memory.mapping_shares(&HostLimits::read());
    let mappings = Budget::count("balloon-mappings", shares.balloon);
    let balloon = Balloon::new(settings, reclaim, &mappings);
    let balloon = balloon.map_err(BuildError::device("balloon"))?;
    machine.budgets.push(mappings);
    let balloon = Arc::new(DeviceLock::new(balloon));
    machine.add_virtio(balloon.clone(), &Home::Main)?;
    machine.subscribe(Box::new(TimerRunner::new(Arc::clone(&balloon))), &Home::Main);
    Ok(Some(balloon))
}
