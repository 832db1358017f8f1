// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian packages that a task needs, installed only if missing.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Result, task_error};
use crate::run;

/// Two threads may need packages at once, and apt's lists have a lock that it does not wait for.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ensures that `packages` are installed, for the purpose `what`.
pub(crate) fn ensure(what: &str, packages: &[&str]) -> Result<()> {
    if !run::in_path("dpkg-query") || !run::in_path("apt-get") {
        return task_error(format!(
            "{what} needs the Debian packages {}, and this is not a Debian system: use Debian 12, \
             or provide the parts manually (see docs/testing.md)",
            packages.join(" ")
        ));
    }
    let _alone = alone();
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return task_error(format!(
            "{what} needs packages that only root can install: \
             apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        ));
    }
    eprintln!("{what}: installing {}", missing.join(" "));
    refresh_lists()?;
    run::quiet(apt_get().args(["install", "-y", "--no-install-recommends"]).args(&missing))
}

/// Refreshes the package lists.
pub(crate) fn update() -> Result<()> {
    let _alone = alone();
    refresh_lists()
}

fn refresh_lists() -> Result<()> {
    run::quiet(apt_get().arg("update"))
}

/// An `apt-get` that asks nothing and waits for another one to end.
pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}
