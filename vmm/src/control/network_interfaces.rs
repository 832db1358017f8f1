// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on network interfaces.

use super::Controller;
use crate::api::network_interfaces::NetworkAction;
use crate::api::{Refusal, Reply};
use crate::config::{NetworkInterfaceUpdate, RateLimiterConfig, network_interfaces};

impl Controller {
    pub(super) fn network_action(&mut self, action: NetworkAction) -> Result<Reply, Refusal> {
        match action {
            NetworkAction::Set(interface) => self.configure(|config| {
                network_interfaces::set(&mut config.network_interfaces, interface);
            }),
            NetworkAction::Update(update) => self.update_interface(update),
            NetworkAction::Remove(_) => Err(super::no_hot_unplug()),
        }
    }

    /// Changes limits; the device's thread puts them into effect.
    fn update_interface(&mut self, update: NetworkInterfaceUpdate) -> Result<Reply, Refusal> {
        let NetworkInterfaceUpdate { iface_id: id, rx_rate_limiter: rx, tx_rate_limiter: tx } =
            update;
        let unknown = || Refusal::Failed(format!("Unknown network interface `{id}`."));
        let interfaces = &self.vm()?.devices().interfaces;
        let handle = interfaces.iter().find(|interface| interface.id == id).ok_or_else(unknown)?;
        if handle.vhost && [rx, tx].into_iter().flatten().any(|limiter| limiter.limits()) {
            return Err(Refusal::Failed(format!(
                "`{id}` uses vhost-net, which has no rate limits: start it with `vhost` `Off`."
            )));
        }
        handle.handle.limit(RateLimiterConfig::update(rx), RateLimiterConfig::update(tx));
        let config = &mut self.config.network_interfaces;
        if let Some(config) = config.iter_mut().find(|interface| interface.iface_id == id) {
            config.rx_rate_limiter = RateLimiterConfig::updated(config.rx_rate_limiter, rx);
            config.tx_rate_limiter = RateLimiterConfig::updated(config.tx_rate_limiter, tx);
        }
        Ok(Reply::Done)
    }
}
