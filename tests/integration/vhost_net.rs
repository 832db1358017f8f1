// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An interface whose frames the host's kernel moves: no byte is wrong, and none passes the monitor.

use std::fs;
use std::process::Command;

use harness::guest::Guest;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::devices::{echo_tcp, run};

const TAP: &str = "btap2";
const SEND: &str = "tcp-send 10.97.0.1:7002";

/// The interface `eth2`: two pairs of queues by vhost-net.
pub(crate) fn interface() -> Value {
    json!({ "iface_id": "eth2", "host_dev_name": TAP, "queues": 2, "vhost": "On" })
}

/// The whole test, in a guest that has booted with the interface and two CPUs.
pub(crate) fn moves_frames(context: &Context, guest: &mut Guest) -> Result<()> {
    let ip = context.payload.path("ip");
    run(Command::new(&ip).args(["addr", "add", "10.97.0.1/24", "dev", TAP]))?;
    run(Command::new(&ip).args(["link", "set", TAP, "up"]))?;
    configure(guest)?;
    echo_tcp("10.97.0.1:7002")?;
    sends(guest, "16M", 1)?;
    check_eq!(kernel_threads(guest)?, 2);
    let api = guest.monitor.api().clone();
    let net = &api.get("/metrics")?["net_eth2"];
    // Two pairs, and not a frame of theirs through the monitor.
    check_eq!((&net["vhost_queues"], &net["tx_packets_count"]), (&json!(4), &json!(0)));

    // A limit is refused, with the reason.
    let limit = json!({ "bandwidth": { "size": 1 << 20, "refill_time": 100 } });
    let update = json!({ "iface_id": "eth2", "rx_rate_limiter": limit }).to_string();
    let answer = api.request("PATCH", "/network-interfaces/eth2", Some(&update))?;
    check!(answer.status == 400 && answer.text().contains("vhost"), "{}", answer.text());
    Ok(())
}

fn configure(guest: &mut Guest) -> Result<()> {
    for words in ["addr add 10.97.0.2/24 dev eth2", "link set eth2 up"] {
        guest.agent.command(&format!("run /usr/bin/ip {words}"))?;
    }
    Ok(())
}

/// Sends `size` to the host, which sends it back: it arrives as it left.
fn sends(guest: &mut Guest, size: &str, seed: u32) -> Result<()> {
    let figures = guest.agent.figures(&format!("{SEND} {size} {seed}"))?;
    check!(figures["pages"] > 0 && figures["damaged"] == 0, "{figures:?}");
    Ok(())
}

/// Threads of vhost-net that belong to the monitor.
fn kernel_threads(guest: &Guest) -> Result<usize> {
    let tasks = format!("/proc/{}/task", guest.monitor.pid());
    let tasks = fs::read_dir(&tasks).map_err(Error::io(tasks.clone()))?.flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|name| name.starts_with("vhost-")).count())
}
