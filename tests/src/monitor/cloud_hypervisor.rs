// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cloud Hypervisor.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

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
        .args(["--cmdline", &spec.cmdline()])
        .args(["--cpus", &format!("boot={}", spec.cpus)])
        .args(["--memory", &format!("size={}M,thp=on", spec.memory_mib)])
        .args(["--serial", "tty", "--console", "off"]);
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
