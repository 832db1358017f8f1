// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's microvm machine, as lean as its documentation knows how to make it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::Spec;
use crate::{Error, Result};

/// QEMU's control socket, in the work folder.
const SOCKET: &str = "qmp.sock";
/// Firmware beside the binary, where the payload has some.
const FIRMWARE: &str = "qemu-firmware";

pub(super) fn command(program: &Path, spec: &Spec, dir: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(firmware) = program.parent().map(|dir| dir.join(FIRMWARE))
        && firmware.is_dir()
    {
        command.arg("-L").arg(firmware);
    }
    let kvm = std::fs::exists("/dev/kvm").unwrap_or(false);
    let machine = format!(
        "microvm,accel={},x-option-roms=off,pit=off,pic=off,isa-serial=on,rtc=off",
        if kvm { "kvm" } else { "tcg" }
    );
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-machine", &machine, "-cpu", if kvm { "host" } else { "max" }])
        .args(["-smp", &spec.cpus.to_string(), "-m", &format!("{}M", spec.memory_mib)])
        .arg("-kernel")
        .arg(&spec.kernel)
        .args(spec.initrd.iter().flat_map(|path| [OsStr::new("-initrd"), path.as_os_str()]))
        .args(["-append", &format!("{}{}", spec.cmdline(), spec.root_words())])
        // Devices of virtio 1, as the other monitors' are.
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(devices(spec))
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", dir.join(SOCKET).display()));
    if let Some(balloon) = spec.balloon {
        let switch = |on| if on { "on" } else { "off" };
        command.arg("-device").arg(format!(
            "virtio-balloon-device,deflate-on-oom={},free-page-reporting={}",
            switch(balloon.deflate_on_oom),
            switch(balloon.reporting)
        ));
    }
    command
}

/// Disks and network interfaces, from the sections for them in Firecracker's form.
fn devices(spec: &Spec) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = Vec::new();
    for drive in spec.entries("drives") {
        let (id, path) = (word(&drive["drive_id"]), word(&drive["path_on_host"]));
        let aio = if drive["io_engine"] == "Sync" { "threads" } else { "io_uring" };
        let read_only = if drive["is_read_only"] == json!(true) { "on" } else { "off" };
        words.extend(["-object".into(), format!("iothread,id=thread-{id}"), "-drive".into()]);
        words.push(format!(
            "if=none,id={id},file={path},format=raw,cache=writeback,aio={aio},readonly={read_only}"
        ));
        words.push("-device".into());
        words.push(format!("virtio-blk-device,drive={id},iothread=thread-{id}"));
    }
    for interface in spec.entries("network-interfaces") {
        let (id, tap) = (word(&interface["iface_id"]), word(&interface["host_dev_name"]));
        words.push("-netdev".into());
        words.push(format!("tap,id={id},ifname={tap},script=no,downscript=no"));
        words.push("-device".into());
        words.push(format!("virtio-net-device,netdev={id},mac={}", word(&interface["guest_mac"])));
    }
    words
}

/// QEMU takes the size that the guest keeps.
pub(super) fn set_balloon(dir: &Path, mib: u64, spec: &Spec) -> Result<()> {
    let keep = (spec.memory_mib - mib) << 20;
    execute(dir, &json!({ "execute": "balloon", "arguments": { "value": keep } })).map(drop)
}

pub(super) fn balloon_actual(dir: &Path, spec: &Spec) -> Result<u64> {
    let answer = execute(dir, &json!({ "execute": "query-balloon" }))?;
    let kept = answer["actual"]
        .as_u64()
        .ok_or_else(|| Error::Check(format!("no actual in QEMU's answer: {answer}")))?;
    Ok(spec.memory_mib.saturating_sub(kept >> 20))
}

fn execute(dir: &Path, command: &Value) -> Result<Value> {
    let doing = || Error::io("talking to QEMU");
    let stream = UnixStream::connect(dir.join(SOCKET)).map_err(doing())?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(doing())?;
    let mut output = stream.try_clone().map_err(doing())?;
    let mut lines = BufReader::new(stream).lines();
    let mut result = Value::Null;
    for command in [&json!({ "execute": "qmp_capabilities" }), command] {
        output.write_all(format!("{command}\n").as_bytes()).map_err(doing())?;
        // A greeting and events come in between.
        result = loop {
            let line = lines.next().unwrap_or_else(|| Err(std::io::ErrorKind::BrokenPipe.into()));
            let line = line.map_err(doing())?;
            let answer: Value = serde_json::from_str(&line)
                .map_err(|e| Error::Check(format!("QEMU sent no JSON ({e}): {line}")))?;
            if let Some(error) = answer.get("error") {
                return Err(Error::Check(format!("QEMU refused {command}: {error}")));
            }
            if let Some(value) = answer.get("return") {
                break value.clone();
            }
        };
    }
    Ok(result)
}
