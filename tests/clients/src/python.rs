// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! firecracker-python: `life.py` uses its classes for processes, machines and the API. Its `MicroVM`,
//! which is made of them, needs Docker, a default route and nftables before it starts anything.

use std::fs;
use std::process::{self, Command, Stdio};

use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::json;
use tempfile::Builder;

use crate::machine::{GUEST_CID, INTERFACE, MEMORY_MIB, Machine, Shape, TARGET_MIB, VCPUS, until};

const SCRIPT: &str = include_str!("life.py");
const ID: &str = "python";

pub(crate) fn life(context: &Context) -> Result<()> {
    live(&Machine::new(context, Shape::InitialDisk)?)
}

pub(crate) fn life_with_devices(context: &Context) -> Result<()> {
    live(&Machine::new(context, Shape::Devices)?)
}

fn live(machine: &Machine) -> Result<()> {
    let Some(python) = &machine.guest.python else {
        return Err(Error::Check("guest.json names no Python".into()));
    };
    // The client makes the socket's path a host name, and those are in lower case.
    let data = Builder::new()
        .prefix(&format!("ballast-{}", process::id()))
        .rand_bytes(0)
        .tempdir()
        .map_err(Error::io("creating a folder"))?;
    let description = json!({
        "id": ID,
        "binary_path": machine.monitor,
        "data_path": data.path(),
        "kernel_image_path": machine.kernel,
        "initrd_path": machine.initrd(),
        "boot_args": machine.boot_args(),
        "vcpu_count": VCPUS,
        "mem_size_mib": MEMORY_MIB,
        "root": machine.root(),
        "iface_id": INTERFACE,
        "host_dev_name": machine.interface(),
        "guest_cid": GUEST_CID,
        "uds_path": machine.vsock(),
        "target_mib": TARGET_MIB,
    });
    let mut client = Command::new(python)
        .args(["-c", SCRIPT, &description.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::inherit())
        .spawn()
        .map_err(Error::io("starting Python"))?;
    // The client waits for its standard input to end before it stops the machine.
    let dir = data.path().join(ID);
    let output = dir.join("firecracker.log");
    machine.wait_for_guest(|| fs::read(&output).unwrap_or_default())?;
    machine.check_vsock()?;
    let done = dir.join("balloon");
    until(|| {
        let ended = client.try_wait().map_err(Error::io("waiting for Python"))?;
        check!(ended.is_none(), "the client failed: {ended:?}");
        Ok(done.exists())
    })?;
    machine.wait_for_balloon(&dir.join("firecracker.socket"))?;
    drop(client.stdin.take());
    check_eq!(client.wait().map_err(Error::io("waiting for Python"))?.code(), Some(0));
    Ok(())
}
