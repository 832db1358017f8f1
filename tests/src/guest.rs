// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that has booted to the agent.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

use crate::agent::Agent;
use crate::monitor::{Monitor, Program, Spec};
use crate::{Error, Result};

/// A guest that has not booted within this is taken to hang; on a nested, emulated machine with
/// other load a stock distribution kernel takes a while.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// For a balloon to reach its target.
pub const BALLOON_LIMIT: Duration = Duration::from_secs(120);
/// For a monitor to end once it has been told to.
pub const EXIT_LIMIT: Duration = Duration::from_secs(60);

/// Left alone by [`Guest::touch_everything`], at least, and for each CPU beyond the first, which
/// keep some for themselves: below this the guest's kernel runs out of memory.
const UNTOUCHED_MIB: u64 = 8;
const UNTOUCHED_PER_CPU_MIB: u64 = 6;

/// What the guest's kernel keeps free for itself, in KiB.
const KEPT_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// Monitor and agent in one.
#[derive(Debug)]
pub struct Guest {
    /// The monitor that it runs in.
    pub monitor: Monitor,
    /// The agent in it.
    pub agent: Agent,
    /// What it was started from.
    pub spec: Spec,
    /// From the monitor's start to the agent's first line.
    pub boot_time: Duration,
}

impl Guest {
    /// Starts a guest and waits for the agent.
    pub fn boot(program: &Program, spec: Spec, logs: &Path) -> Result<Self> {
        let monitor = Monitor::start(program, &spec, logs)?;
        Self::attach(monitor, spec)
    }

    /// Waits for the agent in a monitor that was started otherwise.
    pub fn attach(mut monitor: Monitor, spec: Spec) -> Result<Self> {
        let input = monitor
            .take_input()
            .ok_or_else(|| Error::Check("the console has been taken already".into()))?;
        let connected = Agent::connect(monitor.console().clone(), input, BOOT_LIMIT);
        let (agent, ready) = connected.map_err(|error| with_stderr(error, &monitor))?;
        let boot_time = ready.at - monitor.started();
        Ok(Self { monitor, agent, spec, boot_time })
    }

    /// Sets the balloon and waits until the guest has followed.
    pub fn balloon_to(&mut self, mib: u64) -> Result<()> {
        self.monitor.balloon_to(mib, &self.spec, BALLOON_LIMIT)
    }

    /// Lets the guest use all its memory once, so that the host really has given it: what was
    /// never touched cannot be gained by giving it back.
    pub fn touch_everything(&mut self) -> Result<()> {
        // With huge pages about, the kernel keeps tens of MiB for itself unless told otherwise.
        let kept = self.agent.command(&format!("read {KEPT_FREE}"))?.join("");
        self.agent.command(&format!("write {KEPT_FREE} 1024"))?;
        let free = self.agent.meminfo()?["MemFree"] >> 20;
        // Page tables take a page for 512.
        let left = UNTOUCHED_MIB.max(6 + free / 400)
            + u64::from(self.spec.cpus - 1) * UNTOUCHED_PER_CPU_MIB;
        self.agent.command(&format!("fill touched {}M", free.saturating_sub(left)))?;
        self.agent.command("free touched")?;
        self.agent.command(&format!("write {KEPT_FREE} {kept}")).map(drop)
    }

    /// One of the balloon's counters; `name` is a path such as `inflation/freed`.
    pub fn balloon_counter(&self, name: &str) -> Result<u64> {
        let metrics = self.monitor.api().get("/metrics")?;
        let value = metrics.pointer(&format!("/balloon/{name}")).and_then(Value::as_u64);
        value.ok_or_else(|| Error::Check(format!("no balloon counter {name}: {metrics}")))
    }

    /// Bytes in the balloon by the device's own record.
    pub fn ballooned(&self) -> Result<u64> {
        let memory = self.monitor.api().get("/memory")?;
        let bytes = memory["ballooned_bytes"].as_u64();
        bytes.ok_or_else(|| Error::Check(format!("no ballooned_bytes: {memory}")))
    }

    /// Powers the guest off from within; gives the monitor's exit status.
    pub fn power_off(mut self) -> Result<ExitStatus> {
        self.agent.farewell("poweroff")?;
        self.monitor.wait_exit(EXIT_LIMIT)
    }
}

/// What the monitor said of it, as the reason is often there.
fn with_stderr(error: Error, monitor: &Monitor) -> Error {
    let stderr = monitor.stderr();
    if stderr.is_empty() {
        return error;
    }
    Error::Check(format!("{error}\nand of its standard error:\n{stderr}"))
}
