// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that has booted to the agent.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use guest_agent::READY;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::console::Line;
use crate::limits::patience;
use crate::monitor::{Monitor, Program, Spec};
use crate::picture::Picture;
use crate::{Error, Result};

/// A guest that has not booted within this time counts as hung; on a nested, emulated machine with
/// other load a stock distribution kernel takes a while.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// For a balloon to reach its target.
pub const BALLOON_LIMIT: Duration = Duration::from_secs(120);
/// Time for a monitor to end after a request to end.
pub const EXIT_LIMIT: Duration = Duration::from_secs(60);

/// Folder, in the guest's debugfs, of the region that Ballast's `cma_mib` makes it reserve.
pub const CMA: &str = "/sys/kernel/debug/cma/reserved";

/// Left alone by [`Guest::touch_everything`], at least, and for each CPU beyond the first, which
/// keep some for themselves: below this the guest's kernel runs out of memory.
const UNTOUCHED_MIB: u64 = 12;
const UNTOUCHED_PER_CPU_MIB: u64 = 6;

/// What the guest's kernel keeps free for itself, in KiB.
const KEPT_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// Bytes of a block.
const BLOCK: u64 = 2 << 20;
/// Blocks that a guest is asked to evacuate at once: what is in them has to find room elsewhere.
const EVACUATED_AT_ONCE: u64 = 32;

/// What the kernel says, on its console, when something is wrong with it.
pub(crate) const COMPLAINTS: [&str; 12] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "general protection fault",
    "kernel BUG at",
    "KASAN:",
    "INFO: task",
    "rcu: INFO:",
    "DMA-API:",
    "Bad page",
    "page allocation failure",
];

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

    /// Lets the guest access all its memory once, so that it is resident: the host gains nothing
    /// from discarding memory that was never accessed.
    pub fn touch_everything(&mut self) -> Result<()> {
        // With huge pages about, the kernel keeps tens of MiB for itself unless told otherwise.
        let kept = self.agent.command(&format!("read {KEPT_FREE}"))?.join("");
        self.agent.command(&format!("write {KEPT_FREE} 1024"))?;
        let free = self.agent.meminfo()?["MemFree"] >> 20;
        // Page tables take a page for 512, and the kernel wants a little of its own.
        let left =
            UNTOUCHED_MIB + free / 250 + u64::from(self.spec.cpus - 1) * UNTOUCHED_PER_CPU_MIB;
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

    /// Has the guest evacuate all of its memory, a part at a time, which it gets back immediately:
    /// every movable page moves.
    pub fn evacuate_everything(&mut self) -> Result<()> {
        let all = (self.spec.memory_mib << 20) / BLOCK;
        // The monitor gives the guest so long for a request, however slow its kernel.
        let at_once = (EVACUATED_AT_ONCE / u64::from(patience())).max(1);
        let mut first = 0;
        while first < all {
            let blocks = at_once.min(all - first);
            let body = json!({ "start": first * BLOCK, "blocks": blocks });
            let answer = self.monitor.api().put("/memory/evacuate", &body)?;
            let report: Value = serde_json::from_slice(&answer.body)
                .map_err(|e| Error::Check(format!("{e}: {}", answer.text())))?;
            let per_block = report["per_block"].as_array().map(Vec::as_slice).unwrap_or_default();
            crate::check!(per_block.len() as u64 == blocks, "{report}");
            self.balloon_to(0)?;
            first += blocks;
        }
        Ok(())
    }

    /// What scanout `number` shows.
    pub fn picture(&self, number: u32) -> Result<Picture> {
        let response =
            self.monitor.api().request("GET", &format!("/gpu/scanouts/{number}"), None)?;
        crate::check!(response.status == 200, "{}: {}", response.status, response.text());
        Picture::from_png(&response.body)
    }

    /// Fails the test if the guest's kernel has reported a problem since it booted: a warning, a
    /// bug, a report of a sanitizer or of lockdep. Warnings about an emulated CPU come before that.
    pub fn check_kernel_is_content(&self) -> Result<()> {
        let mut lines = self.monitor.console().lines_from(0);
        let booted = lines.iter().position(|line| line.text.contains(READY)).unwrap_or(0);
        lines.drain(..booted);
        let complaint = |line: &&Line| COMPLAINTS.iter().any(|words| line.text.contains(words));
        let Some(first) = lines.iter().position(|line| complaint(&line)) else { return Ok(()) };
        let shown: Vec<&str> = lines[first..].iter().take(60).map(|l| l.text.as_str()).collect();
        Err(Error::Check(format!("the guest's kernel complains:\n{}", shown.join("\n"))))
    }

    /// Powers off the guest from inside; returns the monitor's exit status. Fails the test if the
    /// guest's kernel reported a problem.
    pub fn power_off(mut self) -> Result<ExitStatus> {
        self.check_kernel_is_content()?;
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
