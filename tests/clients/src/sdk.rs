// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! firecracker-rs-sdk: HTTP/1.0 requests over one connection that stays open. It waits for more after
//! an answer whose length is a multiple of 64, from any server; the machine's name avoids such lengths.

use std::fs;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::models::{
    Balloon, BalloonUpdate, BootSource, Drive, EntropyDevice, MachineConfiguration, MmdsConfig,
    MmdsConfigVersion, NetworkInterface, Vsock,
};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::machine::{
    GUEST_CID, INTERFACE, MEMORY_MIB, Machine, Shape, TARGET_MIB, VCPUS, block_on, failed, output_file,
};

pub(crate) fn life(context: &Context) -> Result<()> {
    block_on(live(Machine::new(context, Shape::InitialDisk)?))
}

pub(crate) fn life_with_devices(context: &Context) -> Result<()> {
    block_on(live(Machine::new(context, Shape::Devices)?))
}

async fn live(machine: Machine) -> Result<()> {
    let output = output_file(&machine.dir)?;
    let mut instance = FirecrackerOption::new(&machine.monitor)
        .api_sock(machine.socket())
        .id("sdk-life")
        .stdin("/dev/null")
        .stdout(&output)
        .log_path(Some(machine.dir.join("log")))
        .build()
        .map_err(failed("describing the monitor"))?;
    instance.start_vmm().await.map_err(failed("starting the monitor"))?;
    instance.get_firecracker_version().await.map_err(failed("asking for the version"))?;

    let configuration = MachineConfiguration {
        cpu_template: None,
        smt: Some(false),
        mem_size_mib: MEMORY_MIB as isize,
        track_dirty_pages: None,
        vcpu_count: isize::from(VCPUS),
        huge_pages: None,
    };
    instance
        .put_machine_configuration(&configuration)
        .await
        .map_err(failed("PUT /machine-config"))?;
    let read = instance.get_machine_configuration().await.map_err(failed("GET /machine-config"))?;
    check_eq!(read.mem_size_mib, configuration.mem_size_mib);
    instance
        .put_guest_boot_source(&BootSource {
            boot_args: Some(machine.boot_args()),
            initrd_path: machine.initrd().map(Into::into),
            kernel_image_path: machine.kernel.clone(),
        })
        .await
        .map_err(failed("PUT /boot-source"))?;
    instance
        .put_balloon(&Balloon {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
        })
        .await
        .map_err(failed("PUT /balloon"))?;
    if let Some(root) = machine.root() {
        let drive = Drive {
            drive_id: "rootfs".into(),
            partuuid: None,
            is_root_device: true,
            cache_type: None,
            is_read_only: false,
            path_on_host: root.into(),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        };
        instance.put_guest_drive_by_id(&drive).await.map_err(failed("PUT /drives"))?;
    }
    if let Some(tap) = machine.interface() {
        let interface = NetworkInterface {
            guest_mac: Some("06:00:ac:10:00:02".into()),
            host_dev_name: tap.into(),
            iface_id: INTERFACE.into(),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        };
        instance
            .put_guest_network_interface_by_id(&interface)
            .await
            .map_err(failed("PUT /network-interfaces"))?;
    }
    if let Some(interface) = machine.metadata_interface() {
        let config = MmdsConfig {
            version: Some(MmdsConfigVersion::V2),
            ipv4_address: None,
            network_interfaces: vec![interface.into()],
        };
        instance.put_mmds_config(&config).await.map_err(failed("PUT /mmds/config"))?;
        // To this client metadata is a string: it sends one, not the JSON in it.
        instance.put_mmds(&"kestrel".into()).await.map_err(failed("PUT /mmds"))?;
    }
    if let Some(uds_path) = machine.vsock() {
        let vsock = Vsock { guest_cid: GUEST_CID, uds_path, vsock_id: None };
        instance.put_guest_vsock(&vsock).await.map_err(failed("PUT /vsock"))?;
        instance
            .put_entropy_device(&EntropyDevice { rate_limiter: None })
            .await
            .map_err(failed("PUT /entropy"))?;
    }

    instance.start().await.map_err(failed("InstanceStart"))?;
    machine.wait_for_guest(|| fs::read(&output).unwrap_or_default())?;
    machine.check_vsock()?;
    instance.pause().await.map_err(failed("pausing"))?;
    let paused = instance.describe_instance().await.map_err(failed("GET /"))?;
    check_eq!(format!("{:?}", paused.state), "Paused");
    instance.resume().await.map_err(failed("resuming"))?;
    instance
        .patch_balloon(&BalloonUpdate { amount_mib: TARGET_MIB.into() })
        .await
        .map_err(failed("PATCH /balloon"))?;
    let balloon = instance.describe_balloon_config().await.map_err(failed("GET /balloon"))?;
    check_eq!(balloon.amount_mib, i64::from(TARGET_MIB));
    instance.describe_balloon_stats().await.map_err(failed("GET /balloon/statistics"))?;
    machine.wait_for_balloon(&machine.socket())?;
    if machine.metadata_interface().is_some() {
        instance.patch_mmds(&"merlin".into()).await.map_err(failed("PATCH /mmds"))?;
        check_eq!(instance.get_mmds().await.map_err(failed("GET /mmds"))?, "merlin");
    }
    instance.get_export_vm_config().await.map_err(failed("GET /vm/config"))?;

    instance.stop().await.map_err(failed("SendCtrlAltDel"))?;
    let pid = instance.firecracker_pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let ended = waitpid(pid, WaitOptions::empty())
        .map_err(|error| Error::io("waiting for the monitor")(error.into()))?;
    check!(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)), "{ended:?}");
    Ok(())
}
