// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! firepilot: copies files to a folder of its own, and removes the socket's file itself. It has no
//! call for the balloon, vsock, metadata and the console, which are set over its socket beside it.

use std::fs;

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::network_interface::NetworkInterfaceBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine as Firepilot;
use harness::api::Api;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::machine::{
    GUEST_CID, INTERFACE, MEMORY_MIB, Machine, Shape, TARGET_MIB, VCPUS, block_on, failed,
    metadata, metadata_change, metadata_changed, output_file, until,
};

const ID: &str = "pilot";

pub(crate) fn life(context: &Context) -> Result<()> {
    block_on(live(Machine::new(context, Shape::InitialDisk)?))
}

pub(crate) fn life_with_devices(context: &Context) -> Result<()> {
    block_on(live(Machine::new(context, Shape::Devices)?))
}

async fn live(machine: Machine) -> Result<()> {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let executor = FirecrackerExecutorBuilder::new()
        .with_chroot(text(&machine.dir))
        .with_exec_binary(machine.monitor.clone())
        .try_build()
        .map_err(failed("an executor"))?;
    let mut kernel = KernelBuilder::new()
        .with_kernel_image_path(text(&machine.kernel))
        .with_boot_args(machine.boot_args());
    if let Some(initrd) = machine.initrd() {
        kernel = kernel.with_initrd_path(text(initrd));
    }
    let mut configuration = Configuration::new(ID.into())
        .with_executor(executor)
        .with_kernel(kernel.try_build().map_err(failed("a kernel"))?);
    if let Some(root) = machine.root() {
        let drive = DriveBuilder::new()
            .with_drive_id("rootfs".into())
            .with_path_on_host(root.into())
            .as_root_device()
            .try_build()
            .map_err(failed("a drive"))?;
        configuration = configuration.with_drive(drive);
    }
    if let Some(tap) = machine.interface() {
        let interface = NetworkInterfaceBuilder::new()
            .with_iface_id(INTERFACE.into())
            .with_host_dev_name(tap)
            .try_build()
            .map_err(failed("a network interface"))?;
        configuration = configuration.with_interface(interface);
    }
    let mut pilot = Firepilot::new();
    pilot.create(configuration).await.map_err(failed("creating the machine"))?;

    let output = output_file(&machine.dir)?;
    let socket = machine.dir.join(ID).join("firecracker.socket");
    let api = Api::new(&socket);
    let put = |path: &str, body: Value| {
        check_eq!(api.put(path, &body)?.status, 204);
        Ok::<(), Error>(())
    };
    put("/machine-config", json!({ "vcpu_count": VCPUS, "mem_size_mib": MEMORY_MIB }))?;
    put("/serial", json!({ "serial_out_path": output }))?;
    put(
        "/balloon",
        json!({ "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1 }),
    )?;
    if let Some(path) = machine.vsock() {
        put("/vsock", json!({ "guest_cid": GUEST_CID, "uds_path": path }))?;
        put("/entropy", json!({}))?;
    }
    if let Some(interface) = machine.metadata_interface() {
        put("/mmds/config", json!({ "version": "V2", "network_interfaces": [interface] }))?;
        put("/mmds", metadata())?;
    }

    pilot.start().await.map_err(failed("starting"))?;
    machine.wait_for_guest(|| fs::read(&output).unwrap_or_default())?;
    machine.check_vsock()?;
    pilot.pause().await.map_err(failed("pausing"))?;
    check_eq!(api.get("/")?["state"], json!("Paused"));
    pilot.resume().await.map_err(failed("resuming"))?;
    api.patch("/balloon", &json!({ "amount_mib": TARGET_MIB }))?;
    machine.wait_for_balloon(&socket)?;
    if machine.metadata_interface().is_some() {
        api.patch("/mmds", &metadata_change())?;
        check_eq!(api.get("/mmds")?, metadata_changed());
    }

    pilot.stop().await.map_err(failed("stopping"))?;
    until(|| Ok(api.get("/").is_err()))?;
    check!(socket.exists(), "firepilot fails where the socket's file is gone");
    pilot.kill().await.map_err(failed("ending the monitor"))?;
    check!(!socket.exists(), "firepilot removes the socket's file");
    Ok(())
}
