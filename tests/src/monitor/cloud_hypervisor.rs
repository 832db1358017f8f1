// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cloud Hypervisor.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Spec;
use crate::api::Api;
use crate::{Error, Result};

pub(super) fn command(program: &Path, spec: &Spec, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--api-socket")
        .arg(format!("path={}", dir.join("api.sock").display()))
        .arg("--kernel")
        .arg(&spec.kernel)
        .args(spec.initrd.iter().flat_map(|path| [OsStr::new("--initramfs"), path.as_os_str()]))
        .args(["--cmdline", &format!("{}{}", spec.cmdline(), spec.root_words())])
        .args(["--cpus", &format!("boot={}", spec.cpus)])
        .args(["--memory", &format!("size={}M,thp=on", spec.memory_mib)])
        .args(["--serial", "tty", "--console", "off"])
        .args(devices(spec));
    if let Some(balloon) = spec.balloon {
        let switch = |on| if on { "on" } else { "off" };
        command.arg("--balloon").arg(format!(
            "size=0,deflate_on_oom={},free_page_reporting={}",
            switch(balloon.deflate_on_oom),
            switch(balloon.reporting)
        ));
    }
    command
}

/// Disks, network interfaces and vsock, from the sections for them in Firecracker's form. It has one
/// engine for all disks: io_uring, where that is permitted.
fn devices(spec: &Spec) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = Vec::new();
    let disks: Vec<String> = spec
        .entries("drives")
        .map(|drive| {
            let read_only = if drive["is_read_only"] == json!(true) { "on" } else { "off" };
            let path = word(&drive["path_on_host"]);
            format!("path={path},readonly={read_only},image_type=raw")
        })
        .collect();
    if !disks.is_empty() {
        words.push("--disk".into());
        words.extend(disks);
    }
    for interface in spec.entries("network-interfaces") {
        words.push("--net".into());
        let (tap, mac) = (word(&interface["host_dev_name"]), word(&interface["guest_mac"]));
        words.push(format!("tap={tap},mac={mac}"));
    }
    if let Some(vsock) = spec.more.get("vsock") {
        words.push("--vsock".into());
        words.push(format!("cid={},socket={}", vsock["guest_cid"], word(&vsock["uds_path"])));
    }
    words
}

pub(super) fn set_balloon(api: &Api, mib: u64) -> Result<()> {
    api.put("/api/v1/vm.resize", &json!({ "desired_balloon": mib << 20 })).map(drop)
}

pub(super) fn balloon_actual(api: &Api, spec: &Spec) -> Result<u64> {
    let info = api.get("/api/v1/vm.info")?;
    let kept = info["memory_actual_size"]
        .as_u64()
        .ok_or_else(|| Error::Check(format!("no memory_actual_size in vm.info: {info}")))?;
    Ok(spec.memory_mib.saturating_sub(kept >> 20))
}
