// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cloud Hypervisor.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Spec;
use crate::api::Api;
use crate::limits::patient;
use crate::{Error, Result};

/// The socket at which it offers the serial port: it reads standard input only from a terminal.
const SERIAL: &str = "serial.sock";

/// How long it may take to offer that socket: it does so before the guest starts.
const SERIAL_LIMIT: Duration = Duration::from_secs(20);

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
        .arg("--serial")
        .arg(format!("socket={}", dir.join(SERIAL).display()))
        .args(["--console", "off"])
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

/// What the guest writes to the serial port, from its first line on, and the way to it.
pub(super) fn console(dir: &Path) -> Result<(File, File)> {
    let path = dir.join(SERIAL);
    let deadline = Instant::now() + patient(SERIAL_LIMIT);
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => {
                let doing = format!("connecting to Cloud Hypervisor's {SERIAL}");
                return Err(Error::io(doing)(error));
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
    };
    let output = OwnedFd::from(stream);
    let input = output.try_clone().map_err(Error::io("duplicating a socket"))?;
    Ok((File::from(output), File::from(input)))
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
