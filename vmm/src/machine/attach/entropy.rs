// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device, on its own thread.

use std::sync::Arc;

use devices::entropy::{Entropy, EntropyHandle};
use devices::virtio::{DeviceLock, SourceRunner};

use crate::config::RateLimiterConfig;
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;

/// Adds the entropy device to `machine`, if one is configured.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Option<EntropyHandle>, BuildError> {
    let Some(wanted) = &machine.config.entropy else { return Ok(None) };
    let device = Entropy::new(RateLimiterConfig::build(wanted.rate_limiter))
        .map_err(BuildError::device("entropy"))?;
    let handle = device.handle();
    let sources = device.sources().map_err(BuildError::device("entropy"))?;
    let home = Home::Thread("entropy".to_owned());
    let transport = machine.add_virtio(Arc::new(DeviceLock::new(device)), &home)?;
    machine.subscribe(Box::new(SourceRunner::new(transport, sources)), &home);
    Ok(Some(handle))
}
