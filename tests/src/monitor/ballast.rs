// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ballast and Firecracker: one configuration file format and one API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::Spec;
use crate::api::Api;
use crate::{Error, Result};

/// How often the guest is asked for statistics, in seconds. Firecracker tells the balloon's size
/// only where statistics are on.
const STATS_INTERVAL_S: u16 = 1;

/// The configuration file for `spec`.
#[must_use]
pub fn config_json(spec: &Spec) -> Value {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": spec.kernel,
            "initrd_path": spec.initrd,
            "boot_args": spec.cmdline(),
        },
        "drives": [],
        "machine-config": { "vcpu_count": spec.cpus, "mem_size_mib": spec.memory_mib },
    });
    if let Some(balloon) = spec.balloon {
        let mut section = json!({
            "amount_mib": 0,
            "deflate_on_oom": balloon.deflate_on_oom,
            "stats_polling_interval_s": STATS_INTERVAL_S,
        });
        if balloon.reporting {
            section["free_page_reporting"] = json!(true);
        }
        if !balloon.blocks {
            section["blocks"] = json!(false);
        }
        config["balloon"] = section;
    }
    for (section, value) in &spec.more {
        config[section] = value.clone();
    }
    config
}

pub(super) fn ballast(program: &Path, spec: &Spec, dir: &Path) -> Result<Command> {
    let config = write_config(spec, dir)?;
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(config).arg("--api-sock").arg(dir.join("api.sock"));
    // With it, standard error says why the machine ended.
    command.args(["--log-level", "info"]);
    Ok(command)
}

pub(super) fn firecracker(program: &Path, spec: &Spec, dir: &Path) -> Result<Command> {
    let config = write_config(spec, dir)?;
    let mut command = Command::new(program);
    command
        .arg("--config-file")
        .arg(config)
        .arg("--api-sock")
        .arg(dir.join("api.sock"))
        .args(["--id", "bench"]);
    Ok(command)
}

fn write_config(spec: &Spec, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("config.json");
    fs::write(&path, config_json(spec).to_string()).map_err(Error::io("writing config.json"))?;
    Ok(path)
}

pub(super) fn set_balloon(api: &Api, mib: u64) -> Result<()> {
    api.patch("/balloon", &json!({ "amount_mib": mib })).map(drop)
}

pub(super) fn balloon_actual(api: &Api) -> Result<u64> {
    let stats = api.get("/balloon/statistics")?;
    stats["actual_mib"]
        .as_u64()
        .ok_or_else(|| Error::Check(format!("no actual_mib in the statistics: {stats}")))
}
