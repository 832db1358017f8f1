// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `mmds-config`: the interfaces on which the guest reaches the metadata service, and how.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network_interfaces::NetworkInterfaceConfig;
use super::rules::{Check, Faults};

/// Version of the service: V2 requires tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MmdsVersion {
    /// It may use them; deprecated, and Firecracker's default.
    #[default]
    V1,
    /// Every GET needs one.
    V2,
}

/// The metadata service as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Version of the service: V2 requires tokens.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Names of the interfaces on which the service responds; at least one.
    pub network_interfaces: Vec<String>,
    /// Its link-local IPv4 address; 169.254.169.254 by default.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Always respond in plain text regardless of the `Accept` header, as EC2's service does.
    #[serde(default)]
    pub imds_compat: bool,
}

/// The rules of this section, for a machine with these interfaces.
pub(super) fn rules(
    check: &Check<'_, Option<MmdsConfig>>,
    interfaces: &[NetworkInterfaceConfig],
    faults: &mut Faults,
) {
    let Some(mmds) = check.section else { return };
    if mmds.network_interfaces.is_empty() {
        faults.add("mmds-config.network_interfaces", "empty: name at least one interface");
    }
    for name in &mmds.network_interfaces {
        let mut known = interfaces.iter();
        if !known.any(|interface| interface.iface_id == *name) {
            let problem = format!("unknown network interface `{name}`");
            faults.add("mmds-config.network_interfaces", problem);
        }
    }
    if let Some(address) = mmds.ipv4_address
        && !is_usable(address)
    {
        let problem =
            format!("{address}: give a link-local address, 169.254.1.0 to 169.254.254.255");
        faults.add("mmds-config.ipv4_address", problem);
    }
}

/// Whether a host may have this link-local address (RFC 3927, 2.1).
fn is_usable(address: Ipv4Addr) -> bool {
    address.is_link_local() && (1..=254).contains(&address.octets()[2])
}
