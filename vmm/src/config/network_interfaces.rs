// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `network-interfaces`: network cards over TAP interfaces of the host, or over passt.

use std::fmt;
use std::str::FromStr;

use devices::net::MAX_PAIRS;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rate_limiter::RateLimiterConfig;
use super::rules::{Check, Faults, device_id};

/// Smallest MTU, required of every link by IPv4 (RFC 791).
const MIN_MTU: u16 = 68;
/// Longest name of an interface (`IFNAMSIZ` less the terminating zero).
const MAX_NAME: usize = 15;

/// What a network interface is connected to on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum NetBackend {
    /// A TAP interface.
    #[default]
    Tap,
    /// passt, a process that needs no privileges.
    User,
}

/// Whether vhost-net, a part of the host's kernel, moves the frames of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VhostChoice {
    /// The monitor does.
    #[default]
    Off,
    /// vhost-net does if the host has it and the interface has neither rate limits nor metadata.
    Auto,
    /// vhost-net does; without it the machine does not start.
    On,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceConfig {
    /// Its name: letters, digits and underscores.
    pub iface_id: String,
    /// The host's TAP interface; created if missing and permitted. Absent with backend `User`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
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
    /// What the interface is connected to on the host. Ballast extension; omitted if `Tap`.
    #[serde(default, skip_serializing_if = "is_tap")]
    pub backend: NetBackend,
    /// TCP ports of the host to forward to the guest, in the syntax of passt's `--tcp-ports`:
    /// `2222:22`, or a list. Backend `User` only. Ballast extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_ports: Option<String>,
    /// Whether vhost-net moves the frames: `Off`, `Auto` or `On`. Ballast extension; omitted if
    /// `Off`.
    #[serde(default, skip_serializing_if = "is_off")]
    pub vhost: VhostChoice,
}

impl NetworkInterfaceConfig {
    /// Why vhost-net cannot move the frames of this interface, if it cannot; `mmds` has the names of
    /// those that serve metadata.
    pub fn vhost_obstacle(&self, mmds: &[String]) -> Option<&'static str> {
        let limited = |limits: Option<RateLimiterConfig>| limits.is_some_and(|l| l.limits());
        if self.backend == NetBackend::User {
            Some("vhost-net moves frames of a TAP only")
        } else if limited(self.rx_rate_limiter) || limited(self.tx_rate_limiter) {
            Some("vhost-net has no rate limits")
        } else if mmds.contains(&self.iface_id) {
            Some("vhost-net serves no metadata (mmds-config)")
        } else {
            None
        }
    }
}

fn is_off(choice: &VhostChoice) -> bool {
    *choice == VhostChoice::Off
}

fn is_tap(backend: &NetBackend) -> bool {
    *backend == NetBackend::Tap
}

fn one() -> u16 {
    1
}

fn is_one(count: &u16) -> bool {
    *count == 1
}

/// Changes to a network interface while the guest runs (`PATCH /network-interfaces/{id}`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
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

/// The rules of this section; `mmds` are the interfaces that serve metadata.
pub(super) fn rules(
    check: &Check<'_, Vec<NetworkInterfaceConfig>>,
    mmds: &[String],
    faults: &mut Faults,
) {
    let interfaces = check.section;
    for (at, interface) in interfaces.iter().enumerate() {
        let before = &interfaces[..at];
        device_id("network-interfaces.iface_id", &interface.iface_id, faults);
        if before.iter().any(|other| other.iface_id == interface.iface_id) {
            let problem = format!("`{}` is given twice", interface.iface_id);
            faults.add("network-interfaces.iface_id", problem);
        }
        host_side(interface, before, faults);
        if interface.vhost == VhostChoice::On
            && let Some(obstacle) = interface.vhost_obstacle(mmds)
        {
            let advice = format!("{obstacle}: give `Auto` or `Off`");
            faults.add("network-interfaces.vhost", advice);
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

/// The rules for what `interface` is connected to; `before` are the interfaces ahead of it.
fn host_side(
    interface: &NetworkInterfaceConfig,
    before: &[NetworkInterfaceConfig],
    faults: &mut Faults,
) {
    const NAME: &str = "network-interfaces.host_dev_name";
    match (interface.backend, &interface.host_dev_name) {
        (NetBackend::Tap, Some(name)) => {
            if !(1..=MAX_NAME).contains(&name.len()) || name.contains(['/', '\0']) {
                let problem = format!("`{name}`: an interface name has 1 to {MAX_NAME} bytes");
                faults.add(NAME, problem);
            }
            if before.iter().any(|other| other.host_dev_name.as_ref() == Some(name)) {
                let problem = format!("`{name}` is used by another interface of this guest");
                faults.add(NAME, problem);
            }
        }
        (NetBackend::Tap, None) => {
            faults.add(NAME, "missing: name a TAP, or give `\"backend\": \"User\"`");
        }
        (NetBackend::User, Some(name)) => {
            faults.add(NAME, format!("`{name}`: the backend `User` has no TAP; leave it out"));
        }
        (NetBackend::User, None) => {}
    }
    if interface.backend == NetBackend::User && interface.queues != 1 {
        faults.add("network-interfaces.queues", "the backend `User` has one queue pair");
    }
    let Some(ports) = &interface.tcp_ports else { return };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":,./%~-".contains(&byte);
    if interface.backend != NetBackend::User {
        faults.add("network-interfaces.tcp_ports", "only the backend `User` forwards ports");
    } else if ports.is_empty() || !ports.bytes().all(fits) {
        let problem = format!("`{ports}`: give ports as passt takes them, such as 2222:22");
        faults.add("network-interfaces.tcp_ports", problem);
    }
}
