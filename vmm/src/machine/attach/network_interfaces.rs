// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Network interfaces, each on its own thread.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::net::{
    FrameStream, Link, Net, NetConfig, NetHandle, Responder, Tap, TcpService, VhostNet,
};
use devices::virtio::{DeviceLock, SourceRunner};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::config::{
    MmdsConfig, MmdsVersion, NetBackend, NetworkInterfaceConfig, RateLimiterConfig, VhostChoice,
};
use crate::host::passt::{Passt, PasstOptions};
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;
use crate::mmds::{self, Http, MmdsRules};

/// A network interface, as requests reach it.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its name.
    pub id: String,
    /// The device.
    pub handle: NetHandle,
    /// vhost-net moves its frames.
    pub vhost: bool,
}

/// Adds the network interfaces of the configuration to `machine`.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Vec<Interface>, BuildError> {
    let config = machine.config;
    config.network_interfaces.iter().map(|interface| attach_one(machine, interface)).collect()
}

fn attach_one(
    machine: &mut Assembly<'_>,
    wanted: &NetworkInterfaceConfig,
) -> Result<Interface, BuildError> {
    let section = "network-interfaces";
    let (links, passt) = host_side(wanted).map_err(BuildError::device(section))?;
    let config = NetConfig {
        links,
        mac: wanted.guest_mac.map(|mac| mac.0),
        mtu: wanted.mtu,
        rx_limiter: RateLimiterConfig::build(wanted.rx_rate_limiter),
        tx_limiter: RateLimiterConfig::build(wanted.tx_rate_limiter),
        responder: metadata(machine, &wanted.iface_id).map_err(BuildError::device(section))?,
        vhost: vhost(machine, wanted)?,
    };
    let vhost = config.vhost.is_some();
    let device = Net::new(config).map_err(BuildError::device(section))?;
    let handle = device.handle();
    let sources = device.sources().map_err(BuildError::device(section))?;
    let home = Home::Thread(format!("net-{}", wanted.iface_id));
    let transport = machine.add_virtio(Arc::new(DeviceLock::new(device)), &home)?;
    machine.subscribe(Box::new(SourceRunner::new(transport, sources)), &home);
    if let Some(passt) = passt {
        let interface = wanted.iface_id.clone();
        machine.subscribe(Box::new(PasstWatch { interface, passt }), &home);
    }
    Ok(Interface { id: wanted.iface_id.clone(), handle, vhost })
}

/// What is behind the interface: the queues of a TAP, or a stream to passt, which is started.
fn host_side(
    wanted: &NetworkInterfaceConfig,
) -> Result<(Vec<Link>, Option<Passt>), Box<dyn Error + Send + Sync>> {
    match wanted.backend {
        NetBackend::Tap => {
            let taps = Tap::open(wanted.host_dev_name.as_deref().unwrap_or(""), wanted.queues)?;
            Ok((taps.into_iter().map(Link::Tap).collect(), None))
        }
        NetBackend::User => {
            let options = PasstOptions { mtu: wanted.mtu, tcp_ports: wanted.tcp_ports.clone() };
            let (passt, stream) = Passt::start(&options)?;
            Ok((vec![Link::Stream(FrameStream::new(stream))], Some(passt)))
        }
    }
}

/// vhost-net for the interface, if it is wanted and possible. Says in the log which it is.
fn vhost(
    machine: &mut Assembly<'_>,
    wanted: &NetworkInterfaceConfig,
) -> Result<Option<VhostNet>, BuildError> {
    let interface = wanted.iface_id.as_str();
    let obstacle = wanted.vhost_obstacle(machine.config.metadata_interfaces());
    match (wanted.vhost, obstacle) {
        (VhostChoice::Off, _) => return Ok(None),
        (VhostChoice::Auto, Some(obstacle)) => {
            tracing::info!(interface, obstacle, "the monitor moves the frames");
            return Ok(None);
        }
        // A configuration with `On` and an obstacle has been refused.
        (VhostChoice::Auto, None) | (VhostChoice::On, _) => {}
    }
    let opened = VhostNet::open(machine.ram.memory(), wanted.queues)
        .map_err(BuildError::device("network-interfaces.vhost"))
        .and_then(|vhost| machine.charge_threads(wanted.queues.into()).map(|()| vhost));
    match opened {
        Ok(vhost) => {
            tracing::info!(interface, "vhost-net moves the frames");
            Ok(Some(vhost))
        }
        Err(error) if wanted.vhost == VhostChoice::Auto => {
            tracing::warn!(interface, %error, "no vhost-net: the monitor moves the frames");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Holds passt for as long as the interface lives, and says so if it ends before.
struct PasstWatch {
    interface: String,
    passt: Passt,
}

impl MutEventSubscriber for PasstWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let ended = self.passt.ended().as_raw_fd();
        if let Err(error) = ops.add(Events::new_raw(ended, EventSet::IN)) {
            tracing::error!(%error, "cannot watch passt");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Some(end) = self.passt.end() else { return };
        let (interface, status, words) = (&self.interface, end.status, &end.words);
        tracing::warn!(interface, %status, words, "passt has ended: the guest has no network there");
        if let Err(error) = ops.remove(events) {
            tracing::error!(%error, "cannot stop to watch passt");
        }
    }
}

/// The metadata service, if the guest reaches it on interface `id`.
fn metadata(machine: &Assembly<'_>, id: &str) -> std::io::Result<Option<Box<dyn Responder>>> {
    let config = machine.config.mmds_config.as_ref();
    let serves = |config: &&MmdsConfig| config.network_interfaces.iter().any(|name| name == id);
    let Some(config) = config.filter(serves) else { return Ok(None) };
    let rules = MmdsRules {
        tokens_required: config.version == MmdsVersion::V2,
        always_plain: config.imds_compat,
    };
    let service = TcpService::new(
        config.ipv4_address.unwrap_or(mmds::ADDRESS),
        mmds::PORT,
        mmds::MAC,
        Box::new(Http::new(machine.mmds.clone(), rules)),
        Arc::clone(machine.mmds.tcp_counters()),
    )?;
    Ok(Some(Box::new(service)))
}
