// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A configuration file of the shape that Firecracker's start-up example has: every section, most of
//! them `null` or empty, and paths relative to the folder that the monitor is started in.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use harness::api::Api;
use harness::runner::Context;
use harness::{Error, Result, check_eq};
use serde_json::{Value, json};

use crate::machine::{MEMORY_MIB, Machine, Shape, VCPUS, output_file};

pub(crate) fn start_up_configuration(context: &Context) -> Result<()> {
    let mut machine = Machine::new(context, Shape::Devices)?;
    machine.guest.network = false;
    let kernel = machine.kernel.canonicalize().map_err(Error::io("resolving the kernel"))?;
    symlink(kernel, machine.dir.join("vmlinux.bin")).map_err(Error::io("a link"))?;
    let configuration = json!({
        "boot-source": {
            "kernel_image_path": "vmlinux.bin",
            "boot_args": "console=ttyS0 reboot=k panic=1",
            "initrd_path": null,
        },
        "drives": [{
            "drive_id": "rootfs",
            "partuuid": null,
            "is_root_device": true,
            "cache_type": "Unsafe",
            "is_read_only": false,
            "path_on_host": "rootfs.ext4",
            "io_engine": "Sync",
            "rate_limiter": null,
            "socket": null,
        }],
        "machine-config": {
            "vcpu_count": VCPUS,
            "mem_size_mib": MEMORY_MIB,
            "smt": false,
            "track_dirty_pages": false,
            "huge_pages": "None",
        },
        "cpu-config": null,
        "balloon": null,
        "network-interfaces": [],
        "vsock": null,
        "logger": null,
        "metrics": null,
        "mmds-config": null,
        "entropy": null,
        "pmem": [],
        "memory-hotplug": null,
    });
    let file = machine.dir.join("vm_config.json");
    fs::write(&file, configuration.to_string()).map_err(Error::io("writing the configuration"))?;
    let output = output_file(&machine.dir)?;
    let stdout = File::options().append(true).open(&output).map_err(Error::io("the output"))?;
    let mut monitor = Command::new(&machine.monitor)
        .args(["--api-sock", "api.sock", "--config-file", "vm_config.json", "--log-path", "log"])
        .current_dir(&machine.dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()
        .map_err(Error::io("starting the monitor"))?;
    machine.wait_for_guest(|| fs::read(&output).unwrap_or_default())?;
    let api = Api::new(machine.socket());
    check_eq!(api.get("/")?["state"], json!("Running"));
    // Firecracker writes every section of its own; ours gives them back, with what it adds.
    let whole = api.get("/vm/config")?;
    check_eq!(whole["drives"][0]["drive_id"], json!("rootfs"));
    check_eq!(whole["network-interfaces"], Value::Array(Vec::new()));
    api.put("/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
    check_eq!(monitor.wait().map_err(Error::io("waiting for the monitor"))?.code(), Some(0));
    Ok(())
}
