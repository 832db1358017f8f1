// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine that every client configures, and the checks that it works.

use std::fmt::Debug;
use std::fs::{self, File};
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::api::Api;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde::Deserialize;
use serde_json::{Value, json};

/// Memory of the machine, in MiB.
pub(crate) const MEMORY_MIB: u32 = 128;
/// vCPUs of the machine.
pub(crate) const VCPUS: u8 = 2;
/// Target that each client gives the balloon while the machine runs, in MiB.
pub(crate) const TARGET_MIB: u16 = 16;
/// Context identifier of the guest.
pub(crate) const GUEST_CID: u32 = 3;
/// Name of the network interface.
pub(crate) const INTERFACE: &str = "eth0";
/// A port of the guest that has no listener.
const CLOSED_PORT: u32 = 4040;
/// Only stops hung tests: machines differ.
const LIMIT: Duration = Duration::from_secs(90);

/// What `cargo xtask` says of the guest: `guest.json` in the payload.
#[derive(Debug, Deserialize)]
pub(crate) struct Guest {
    /// Text on the console once the guest runs.
    ready: String,
    /// Whether it has drivers: a kernel, and not a guest of a few instructions.
    drivers: bool,
    /// Whether a TAP can be created here.
    pub(crate) network: bool,
    /// Python with firecracker-python.
    pub(crate) python: Option<PathBuf>,
}

/// What the machine has beside memory and CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An initial RAM disk and a balloon.
    InitialDisk,
    /// The guest's root on a disk, a network interface, vsock and entropy too.
    Devices,
}

/// A machine, with a folder for its files.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    pub(crate) shape: Shape,
    pub(crate) monitor: PathBuf,
    pub(crate) kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
    pub(crate) dir: PathBuf,
}

impl Machine {
    pub(crate) fn new(context: &Context, shape: Shape) -> Result<Self> {
        clear(&context.logs)?;
        let payload = &context.payload;
        let description =
            fs::read(payload.path("guest.json")).map_err(Error::io("reading guest.json"))?;
        let guest = serde_json::from_slice(&description).map_err(failed("guest.json"))?;
        let root = context.logs.join("rootfs.ext4");
        fs::copy(payload.path("rootfs.ext4"), &root).map_err(Error::io("copying the root disk"))?;
        // Where it is started from memory: one client gives it half a second.
        let monitor = context.logs.join("firecracker");
        fs::copy(payload.path("firecracker"), &monitor).map_err(Error::io("copying Ballast"))?;
        Ok(Self {
            guest,
            shape,
            monitor,
            kernel: payload.vmlinux(),
            initrd: payload.initrd(),
            root,
            dir: context.logs.clone(),
        })
    }

    /// The command line of the guest's kernel.
    pub(crate) fn boot_args(&self) -> String {
        let mut args = "console=ttyS0 reboot=k panic=1 pci=off".to_owned();
        if self.interface().is_some() {
            args += " ip=172.16.0.2::172.16.0.1:255.255.255.0::eth0:off";
        }
        args
    }

    pub(crate) fn initrd(&self) -> Option<&Path> {
        (self.shape == Shape::InitialDisk).then_some(&*self.initrd)
    }

    pub(crate) fn root(&self) -> Option<&Path> {
        (self.shape == Shape::Devices).then_some(&*self.root)
    }

    /// The name of the TAP. Each machine has its own: the last may still be going away.
    pub(crate) fn interface(&self) -> Option<String> {
        let network = self.shape == Shape::Devices && self.guest.network;
        network.then(|| format!("bc{}", std::process::id() % 100_000))
    }

    pub(crate) fn vsock(&self) -> Option<PathBuf> {
        (self.shape == Shape::Devices).then(|| self.dir.join("v.sock"))
    }

    /// The interface on which the guest reaches metadata, if it has one.
    pub(crate) fn metadata_interface(&self) -> Option<&'static str> {
        self.interface().map(|_| INTERFACE)
    }

    pub(crate) fn has_devices(&self) -> bool {
        self.shape == Shape::Devices
    }

    /// The API's socket, for clients that take any.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// What `console` gives has the line that says that the guest runs.
    pub(crate) fn wait_for_guest(&self, console: impl Fn() -> Vec<u8>) -> Result<()> {
        let mut text = String::new();
        let came = until(|| {
            text = String::from_utf8_lossy(&console()).into_owned();
            Ok(text.contains(&self.guest.ready))
        });
        came.map_err(|_| {
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            Error::Check(format!("{:?} is not on the console:\n{tail}", self.guest.ready))
        })?;
        println!("the guest runs: {:?}", self.guest.ready);
        if self.guest.drivers && self.shape == Shape::Devices {
            check!(text.contains("[vda]"), "no disk: {text}");
            if self.guest.network {
                check!(text.contains("device=eth0"), "no network interface: {text}");
            }
        }
        Ok(())
    }

    /// The guest takes the balloon's target up, where it has a driver.
    pub(crate) fn wait_for_balloon(&self, socket: &Path) -> Result<()> {
        let api = Api::new(socket);
        check_eq!(api.get("/balloon")?["amount_mib"], json!(TARGET_MIB));
        if !self.guest.drivers {
            return Ok(());
        }
        until(|| Ok(api.get("/balloon/statistics")?["actual_mib"] == json!(TARGET_MIB)))?;
        println!("the balloon has {TARGET_MIB} MiB");
        Ok(())
    }

    /// The guest's driver refuses a connection to a port without a listener, which ends the stream.
    pub(crate) fn check_vsock(&self) -> Result<()> {
        let (Some(path), true) = (self.vsock(), self.guest.drivers) else { return Ok(()) };
        let mut stream = UnixStream::connect(path).map_err(Error::io("connecting to vsock"))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(Error::io("setting a time limit"))?;
        let greeting = format!("CONNECT {CLOSED_PORT}\n");
        stream.write_all(greeting.as_bytes()).map_err(Error::io("greeting"))?;
        let mut reply = Vec::new();
        match stream.read_to_end(&mut reply) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                return Err(Error::io("waiting for the guest to refuse")(error));
            }
            _ => {}
        }
        check!(reply.is_empty(), "the guest accepted: {}", String::from_utf8_lossy(&reply));
        println!("vsock: the guest refuses port {CLOSED_PORT}");
        Ok(())
    }
}

/// Metadata that a client sets.
pub(crate) fn metadata() -> Value {
    json!({ "latest": { "meta-data": { "ami-id": "ami-1", "hostname": "kestrel" } } })
}

/// What it changes of that while the machine runs.
pub(crate) fn metadata_change() -> Value {
    json!({ "latest": { "meta-data": { "ami-id": "ami-2" } } })
}

/// What it finds then.
pub(crate) fn metadata_changed() -> Value {
    json!({ "latest": { "meta-data": { "ami-id": "ami-2", "hostname": "kestrel" } } })
}

/// Removes leftovers of an earlier attempt from `dir`, except the test's output.
fn clear(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("reading the test's folder"))? {
        let path = entry.map_err(Error::io("reading the test's folder"))?.path();
        let removed = match path.file_name() {
            Some(name) if name == "output" => Ok(()),
            _ if path.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(Error::io(format!("removing {}", path.display())))?;
    }
    Ok(())
}

/// A file that a monitor writes its standard output to.
pub(crate) fn output_file(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("console");
    File::create(&path).map_err(Error::io("creating a file for the output"))?;
    Ok(path)
}

/// Waits for `done` to give `true`.
pub(crate) fn until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        check!(start.elapsed() < LIMIT, "what was waited for did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// An error of a client, with what was being done.
pub(crate) fn failed<E: Debug>(doing: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::Check(format!("{doing}: {error:?}"))
}

/// Runs a client's future. Some clients wait by spinning, and need threads beside theirs.
pub(crate) fn block_on(client: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::io("starting a runtime"))?
        .block_on(client)
}
