// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A monitor process with a guest in it. Ballast and its peers are started from the same
//! [`Spec`], so that what is measured differs in the monitor only.
//!
//! - `spec.rs`              what guest is wanted
//! - `ballast.rs`           Ballast, and Firecracker, whose interface it shares
//! - `qemu.rs`              QEMU's microvm machine
//! - `cloud_hypervisor.rs`  Cloud Hypervisor

mod ballast;
mod cloud_hypervisor;
mod qemu;
mod spec;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::api::Api;
use crate::console::Console;
use crate::limits::patient;
use crate::{Error, Result};

pub use ballast::config_json;
pub use spec::{Balloon, Spec};

/// Which program a monitor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Ballast,
    /// AWS's microVM monitor.
    Firecracker,
    /// QEMU with its microvm machine.
    Qemu,
    /// The Cloud Hypervisor project's.
    CloudHypervisor,
}

impl Kind {
    /// Its name on the command line and in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ballast => "ballast",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        [Self::Ballast, Self::Firecracker, Self::Qemu, Self::CloudHypervisor]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("{name}: not one of firecracker, qemu, cloud-hypervisor"))
    }
}

/// A monitor's binary.
#[derive(Debug, Clone)]
pub struct Program {
    /// Whose command line it takes.
    pub kind: Kind,
    /// The binary.
    pub path: PathBuf,
}

/// A running monitor. It is killed when dropped.
#[derive(Debug)]
pub struct Monitor {
    kind: Kind,
    child: Child,
    console: Console,
    input: Option<File>,
    started: Instant,
    api: Api,
    dir: TempDir,
    stderr: PathBuf,
}

/// Distinguishes the logs of several monitors of one test.
static STARTED: AtomicU32 = AtomicU32::new(0);

impl Monitor {
    /// Starts `program` with the guest that `spec` describes; logs go to the folder `logs`.
    pub fn start(program: &Program, spec: &Spec, logs: &Path) -> Result<Self> {
        Self::start_confined(program, spec, logs, |_| Ok(()))
    }

    /// As [`Self::start`], with a changed process ([`crate::confine`]).
    pub fn start_confined(
        program: &Program,
        spec: &Spec,
        logs: &Path,
        confine: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<Self> {
        let dir = work_folder()?;
        let mut command = match program.kind {
            Kind::Ballast => ballast::ballast(&program.path, spec, dir.path())?,
            Kind::Firecracker => ballast::firecracker(&program.path, spec, dir.path())?,
            Kind::Qemu => qemu::command(&program.path, spec, dir.path()),
            Kind::CloudHypervisor => cloud_hypervisor::command(&program.path, spec, dir.path()),
        };
        confine(&mut command)?;
        Self::spawn(program.kind, command, dir, logs)
    }

    /// Starts Ballast by a command line of the test's own; `arguments` gets the work folder, where
    /// the API's socket should be called `api.sock`.
    pub fn start_ballast(
        program: &Path,
        logs: &Path,
        arguments: impl FnOnce(&Path, &mut Command),
    ) -> Result<Self> {
        let dir = work_folder()?;
        let mut command = Command::new(program);
        arguments(dir.path(), &mut command);
        Self::spawn(Kind::Ballast, command, dir, logs)
    }

    fn spawn(kind: Kind, mut command: Command, dir: TempDir, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).map_err(Error::io(format!("creating {}", logs.display())))?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = |what: &str| logs.join(format!("{}-{number}.{what}", kind.name()));
        let stderr = log("stderr");
        let errors = File::create(&stderr).map_err(Error::io("creating a log"))?;
        let doing = format!("starting {}", command.get_program().display());
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(Error::io(doing))?;
        let log = log("console");
        let (console, input) = if kind == Kind::CloudHypervisor {
            let opened = cloud_hypervisor::console(dir.path());
            let (output, input) = opened.inspect_err(|_| end(&mut child))?;
            (Console::read(output, &log)?, Some(input))
        } else {
            let output = child.stdout.take().ok_or_else(|| Error::Check("no stdout".into()))?;
            let input = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
            (Console::read(output, &log)?, input)
        };
        let api = Api::new(dir.path().join("api.sock"));
        Ok(Self { kind, child, console, input, started, api, dir, stderr })
    }

    /// Which program it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The guest's serial console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The way to the guest's serial console; can be taken once.
    pub fn take_input(&mut self) -> Option<File> {
        self.input.take()
    }

    /// The monitor's API.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The folder with its socket and other files; removed with the monitor.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits for its API to answer.
    pub fn wait_for_api(&mut self, limit: Duration) -> Result<()> {
        self.poll("the API's socket", limit, |monitor| Ok(monitor.api.connect().ok().map(drop)))
    }

    /// Waits for it to end by itself.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().map_err(Error::io("waiting"))? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let what = format!("{} to end", self.kind.name());
                return Err(Error::Timeout { what, limit, tail: self.console.tail() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks for a balloon of that size.
    pub fn set_balloon(&self, mib: u64, spec: &Spec) -> Result<()> {
        match self.kind {
            Kind::Ballast | Kind::Firecracker => ballast::set_balloon(&self.api, mib),
            Kind::Qemu => qemu::set_balloon(self.dir(), mib, spec),
            Kind::CloudHypervisor => cloud_hypervisor::set_balloon(&self.api, mib),
        }
    }

    /// What the guest has in its balloon, in MiB.
    pub fn balloon_actual(&self, spec: &Spec) -> Result<u64> {
        match self.kind {
            Kind::Ballast | Kind::Firecracker => ballast::balloon_actual(&self.api),
            Kind::Qemu => qemu::balloon_actual(self.dir(), spec),
            Kind::CloudHypervisor => cloud_hypervisor::balloon_actual(&self.api, spec),
        }
    }

    /// Asks for a balloon of that size and waits until the guest has it.
    pub fn balloon_to(&mut self, mib: u64, spec: &Spec, limit: Duration) -> Result<()> {
        self.set_balloon(mib, spec)?;
        self.poll(&format!("a balloon of {mib} MiB"), limit, |monitor| {
            Ok((monitor.balloon_actual(spec)? == mib).then_some(()))
        })
    }

    /// Retries until `probe` returns a value.
    pub fn poll<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let limit = patient(limit);
        let started = Instant::now();
        loop {
            if let Some(found) = probe(self)? {
                return Ok(found);
            }
            let ended = self.child.try_wait().map_err(Error::io("waiting"))?.is_some();
            if ended || started.elapsed() > limit {
                let tail = format!("{}{}", self.console.tail(), self.stderr());
                let what = what.into();
                return Err(if ended {
                    Error::Ended { what, tail }
                } else {
                    Error::Timeout { what, limit, tail }
                });
            }
            std::thread::sleep(pause(started));
        }
    }
}

/// How long to wait until the next look at something that began at `started`: about a fortieth of
/// the time so far. On a machine with few CPUs each look is paid for by what is looked at.
#[must_use]
pub fn pause(started: Instant) -> Duration {
    (started.elapsed() / 40).clamp(Duration::from_millis(1), Duration::from_millis(50))
}

impl Drop for Monitor {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a monitor, unless it has ended already: then there is nothing to kill.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A directory in memory for sockets and similar files.
fn work_folder() -> Result<TempDir> {
    let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    tempfile::Builder::new()
        .prefix("ballast-test-")
        .tempdir_in(parent)
        .map_err(Error::io("creating a folder"))
}
