// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `network-interfaces`: network cards over TAP interfaces of the host.

use std::fmt;
use std::str::FromStr;

use devices::net::MAX_PAIRS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rate_limiter::RateLimiterConfig;
use super::rules::{Check, Faults, device_id};

/// Smallest MTU: what IPv4 asks of every link (RFC 791).
const MIN_MTU: u16 = 68;
/// Longest name of an interface (`IFNAMSIZ` less the terminating zero).
const MAX_NAME: usize = 15;

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceConfig {
    /// Its name: letters, digits and underscores.
    pub iface_id: String,
    /// The host's TAP interface; created if missing and permitted.
    pub host_dev_name: String,
    /// The guest's MAC address; if absent, the guest chooses one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub guest_mac: Option<MacAddress>,
    /// MTU offered to the guest, in bytes: 68 to 65535.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Limits on traffic to the guest.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits on traffic from the guest.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
    /// Queue pairs, 1 to 8; for more than one, create the TAP with `multi_queue`. Ballast
    /// extension; omitted if 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

fn is_one(count: &u16) -> bool {
    *count == 1
}

/// Changes to a network interface while the guest runs (`PATCH /network-interfaces/{id}`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Its name.
    pub iface_id: String,
    /// New limits on traffic to the guest; an omitted bucket is unchanged.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// New limits of what it sends.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// Address of a network card, written `06:00:ac:10:00:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}`: give six pairs of hexadecimal digits, as 06:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| {
                part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            *byte = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Puts `interface` in the place of the one of its name, or at the end.
pub fn set(interfaces: &mut Vec<NetworkInterfaceConfig>, interface: NetworkInterfaceConfig) {
    match interfaces.iter_mut().find(|known| known.iface_id == interface.iface_id) {
        Some(known) => *known = interface,
        None => interfaces.push(interface),
    }
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_, Vec<NetworkInterfaceConfig>>, faults: &mut Faults) {
    let interfaces = check.section;
    for (at, interface) in interfaces.iter().enumerate() {
        let before = &interfaces[..at];
        device_id("network-interfaces.iface_id", &interface.iface_id, faults);
        if before.iter().any(|other| other.iface_id == interface.iface_id) {
            let problem = format!("`{}` is given twice", interface.iface_id);
            faults.add("network-interfaces.iface_id", problem);
        }
        let name = &interface.host_dev_name;
        if !(1..=MAX_NAME).contains(&name.len()) || name.contains(['/', '\0']) {
            let problem = format!("`{name}`: an interface name has 1 to {MAX_NAME} bytes");
            faults.add("network-interfaces.host_dev_name", problem);
        }
        if before.iter().any(|other| other.host_dev_name == *name) {
            let problem = format!("`{name}` is used by another interface of this guest");
            faults.add("network-interfaces.host_dev_name", problem);
        }
        if let Some(mac) = interface.guest_mac {
            if mac.0[0] & 1 != 0 {
                faults.add("network-interfaces.guest_mac", format!("{mac} is a multicast address"));
            }
            if before.iter().any(|other| other.guest_mac == Some(mac)) {
                faults.add("network-interfaces.guest_mac", format!("{mac} is in use"));
            }
        }
        if interface.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            faults.add("network-interfaces.mtu", format!("give {MIN_MTU} to 65535"));
        }
        if !(1..=MAX_PAIRS).contains(&interface.queues) {
            faults.add("network-interfaces.queues", format!("give 1 to {MAX_PAIRS}"));
        }
    }
}
