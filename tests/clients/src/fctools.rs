// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! fctools: hyper over the socket, the console over pipes, metrics from a FIFO.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fctools::extension::metrics::{MetricsTask, spawn_metrics_task};
use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::RuntimeTask;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, EntropyDevice, LoggerSystem, MachineConfiguration,
    MetricsSystem, MmdsConfiguration, MmdsVersion, NetworkInterface, UpdateBalloonDevice,
    VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use futures_util::{AsyncReadExt, StreamExt};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};

use crate::machine::{
    GUEST_CID, INTERFACE, MEMORY_MIB, Machine, Shape, TARGET_MIB, VCPUS, block_on, failed,
    metadata, metadata_change, metadata_changed,
};

type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;
type FcVm = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

/// Only ends what hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// A file that is there already, and may be linked into the monitor's folder.
const MOVED: ResourceType = ResourceType::Moved(MovedResourceType::HardLinkedOrCopied);

pub(crate) fn life(context: &Context) -> Result<()> {
    let machine = Machine::new(context, Shape::InitialDisk)?;
    block_on(live(&machine, InitMethod::ViaApiCalls))
}

pub(crate) fn life_with_devices(context: &Context) -> Result<()> {
    let machine = Machine::new(context, Shape::Devices)?;
    let file = InitMethod::ViaJsonConfiguration(machine.dir.join("config.json"));
    block_on(live(&machine, file))
}

/// The task that reads metrics ends at the first line that lacks a group or a field.
pub(crate) fn metrics_are_understood(context: &Context) -> Result<()> {
    block_on(async {
        let machine = Machine::new(context, Shape::InitialDisk)?;
        let mut resources = resources();
        let mut data = configuration(&machine, &mut resources)?;
        let metrics = created(&mut resources, &machine, "metrics", CreatedResourceType::Fifo)?;
        data.metrics_system = Some(MetricsSystem { metrics });
        let mut vm = prepare(&machine, resources, data, InitMethod::ViaApiCalls).await?;
        let MetricsTask { task, mut receiver } =
            spawn_metrics_task(machine.dir.join("metrics"), 10, TokioRuntime);
        vm.start(LIMIT).await.map_err(failed("starting"))?;
        let first = receiver.next().await;
        if first.is_some() {
            vm.flush_metrics().await.map_err(failed("FlushMetrics"))?;
        }
        let second = receiver.next().await;
        let (Some(first), Some(_)) = (first, second) else {
            return Err(Error::Check(format!("a line ended the task: {:?}", task.join().await)));
        };
        check_eq!(first.put_api_requests.boot_source_count, 1);
        stop(&mut vm, VmShutdownMethod::Kill).await
    })
}

fn resources() -> Resources {
    Resources::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared)
}

fn created(
    resources: &mut Resources,
    machine: &Machine,
    name: &str,
    kind: CreatedResourceType,
) -> Result<Resource> {
    resources
        .create_resource(machine.dir.join(name), ResourceType::Created(kind))
        .map_err(failed("a file"))
}

fn configuration(machine: &Machine, resources: &mut Resources) -> Result<VmConfigurationData> {
    let mut moved = |path: &std::path::Path| {
        resources.create_resource(path, MOVED).map_err(failed("a file that is there"))
    };
    let kernel_image = moved(&machine.kernel)?;
    let initrd = machine.initrd().map(&mut moved).transpose()?;
    let root = machine.root().map(&mut moved).transpose()?;
    let vsock_device = machine
        .vsock()
        .map(|path| {
            resources
                .create_resource(path, ResourceType::Produced)
                .map(|uds| VsockDevice { guest_cid: GUEST_CID, uds })
                .map_err(failed("a socket"))
        })
        .transpose()?;
    let logs = created(resources, machine, "log", CreatedResourceType::File)?;
    let drive = |block| Drive {
        drive_id: "rootfs".into(),
        is_root_device: true,
        cache_type: None,
        partuuid: None,
        is_read_only: Some(false),
        block: Some(block),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    };
    let interface = |host_dev_name| NetworkInterface {
        iface_id: INTERFACE.into(),
        host_dev_name,
        guest_mac: Some("06:00:ac:10:00:02".into()),
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    Ok(VmConfigurationData {
        boot_source: BootSource { kernel_image, boot_args: Some(machine.boot_args()), initrd },
        drives: root.map(drive).into_iter().collect(),
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: VCPUS,
            mem_size_mib: MEMORY_MIB as usize,
            smt: None,
            track_dirty_pages: Some(true),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: machine.interface().map(interface).into_iter().collect(),
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
            free_page_hinting: Some(false),
        }),
        vsock_device,
        logger_system: Some(LoggerSystem { logs: Some(logs), ..LoggerSystem::default() }),
        metrics_system: None,
        memory_hotplug_configuration: None,
        mmds_configuration: machine.metadata_interface().map(|interface| MmdsConfiguration {
            version: MmdsVersion::V2,
            network_interfaces: vec![interface.into()],
            ipv4_address: None,
            imds_compat: None,
        }),
        entropy_device: machine.has_devices().then(EntropyDevice::default),
    })
}

async fn prepare(
    machine: &Machine,
    resources: Resources,
    data: VmConfigurationData,
    init_method: InitMethod,
) -> Result<FcVm> {
    let monitor = &machine.monitor;
    // It has neither a jailer nor an editor of snapshots.
    let installation = VmmInstallation::new(monitor, monitor, monitor);
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(machine.socket())).enable_boot_timer();
    let executor = UnrestrictedVmmExecutor::new(arguments);
    let configuration = VmConfiguration::New { init_method, data };
    FcVm::prepare(executor, resources, installation, configuration)
        .await
        .map_err(failed("preparing"))
}

async fn live(machine: &Machine, init_method: InitMethod) -> Result<()> {
    let mut resources = resources();
    let data = configuration(machine, &mut resources)?;
    let mut vm = prepare(machine, resources, data, init_method).await?;
    vm.start(LIMIT).await.map_err(failed("starting"))?;
    let mut pipes = vm.take_pipes().map_err(failed("taking the pipes"))?;
    let console = Arc::new(Mutex::new(Vec::new()));
    let reader = tokio::spawn({
        let console = Arc::clone(&console);
        async move {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipes.stdout.read(&mut bytes).await {
                let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
                console.extend_from_slice(&bytes[..count]);
            }
            // Until here standard input stays open.
            drop(pipes);
        }
    });
    let text = || console.lock().unwrap_or_else(PoisonError::into_inner).clone();
    machine.wait_for_guest(text)?;
    machine.check_vsock()?;

    check!(!vm.get_info().await.map_err(failed("GET /"))?.is_paused, "not paused yet");
    vm.pause().await.map_err(failed("pausing"))?;
    check!(vm.get_info().await.map_err(failed("GET /"))?.is_paused, "paused");
    vm.resume().await.map_err(failed("resuming"))?;
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: TARGET_MIB })
        .await
        .map_err(failed("PATCH /balloon"))?;
    let balloon = vm.get_balloon_device().await.map_err(failed("GET /balloon"))?;
    check_eq!(balloon.amount_mib, i32::from(TARGET_MIB));
    vm.get_balloon_statistics().await.map_err(failed("GET /balloon/statistics"))?;
    machine.wait_for_balloon(&machine.socket())?;
    if machine.metadata_interface().is_some() {
        vm.create_mmds(metadata()).await.map_err(failed("PUT /mmds"))?;
        vm.update_mmds(metadata_change()).await.map_err(failed("PATCH /mmds"))?;
        check_eq!(vm.get_mmds_untyped().await.map_err(failed("GET /mmds"))?, metadata_changed());
    }
    let read = vm.get_machine_configuration().await.map_err(failed("GET /machine-config"))?;
    check_eq!(read.mem_size_mib, MEMORY_MIB as usize);
    vm.get_firecracker_version().await.map_err(failed("GET /version"))?;
    vm.flush_metrics().await.map_err(failed("FlushMetrics"))?;

    stop(&mut vm, VmShutdownMethod::CtrlAltDel).await?;
    check_eq!(vm.get_state(), VmState::Exited);
    reader.await.map_err(failed("reading the console"))?;
    // The log starts on standard output, and goes on in the file that the configuration names.
    let mut said = text();
    said.extend(fs::read(machine.dir.join("log")).map_err(Error::io("reading the log"))?);
    let said = String::from_utf8_lossy(&said);
    for line in ["Running Firecracker v", "Vmm is stopping", "Firecracker exiting successfully"] {
        check!(said.contains(line), "{line:?} is not in the log: {said}");
    }
    // Removes every file; fails where one that the monitor makes is gone.
    vm.cleanup().await.map_err(failed("cleaning up"))?;
    Ok(())
}

async fn stop(vm: &mut FcVm, method: VmShutdownMethod) -> Result<()> {
    let graceful = method == VmShutdownMethod::CtrlAltDel;
    let action = VmShutdownAction { method, timeout: Some(LIMIT), graceful };
    let outcome = vm.shutdown([action]).await.map_err(failed("stopping"))?;
    check!(outcome.is_fully_graceful() || !graceful, "{outcome:?}");
    Ok(())
}
