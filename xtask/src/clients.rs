// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask clients`: runs published clients of Firecracker against Ballast (`tests/clients`):
//! with guests of a few instructions on any /dev/kvm, or with real guests where KVM works.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::build::{self, Profile};
use crate::count::Count;
use crate::error::{Error, IoContext, Result, task_error};
use crate::lock::FileLock;
use crate::outer::Size;
use crate::{apt, kernel, outer, paths, rootfs, run, testbed, tiny_guest};

/// Each test has a limit of its own.
const LIMIT: Duration = Duration::from_secs(2400);
/// Size of the guests' root disk, in MiB.
const ROOT_MIB: u64 = 48;

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Use our guest kernel, where KVM works, instead of guests of a few instructions
    #[arg(long)]
    guests: bool,
    /// Run only tests whose names contain one of these
    filters: Vec<OsString>,
}

/// Runs the clients natively.
pub(crate) fn native() -> Result<Count> {
    run(&Options::default())
}

/// Runs them with real guests.
pub(crate) fn with_guests() -> Result<Count> {
    run(&Options { guests: true, ..Options::default() })
}

/// Builds what is missing and runs the clients.
pub(crate) fn run(options: &Options) -> Result<Count> {
    let tests = client_tests()?;
    let python = python()?;
    let (name, ballast) = if options.guests {
        ("guests", build::ballast(Profile::TestRelease)?)
    } else {
        ("native", build::ballast_for_tests()?)
    };
    let payload = paths::target().join("clients/payload").join(name);
    if payload.exists() {
        fs::remove_dir_all(&payload).doing("emptying", &payload)?;
    }
    fs::create_dir_all(&payload).doing("creating", &payload)?;
    // Under this name it takes Firecracker's place.
    link(&ballast, &payload.join("firecracker"))?;
    let description = if options.guests {
        real_guest(&payload)?;
        json!({ "ready": "ballast-agent: ready", "drivers": true, "network": true, "python": python })
    } else {
        tiny_guest(&payload)?;
        let network = rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists();
        json!({ "ready": "ready", "drivers": false, "network": network, "python": python })
    };
    let file = payload.join("guest.json");
    fs::write(&file, description.to_string()).doing("writing", &file)?;

    let logs = paths::target().join("clients/logs").join(name);
    if logs.exists() {
        fs::remove_dir_all(&logs).doing("emptying", &logs)?;
    }
    fs::create_dir_all(&logs).doing("creating", &logs)?;
    let mut words: Vec<OsString> = vec![tests.into(), "--payload".into(), payload.into()];
    words.extend(["--logs".into(), logs.clone().into()]);
    words.extend(["--stress".into(), "0".into()]);
    words.extend(options.filters.iter().cloned());
    let status = if options.guests {
        outer::run_command(&words, Size::TESTS, LIMIT)?
    } else {
        let status = Command::new(&words[0]).args(&words[1..]).status();
        let status =
            status.map_err(|source| Error::Spawn { program: "client-tests".into(), source })?;
        u8::try_from(status.code().unwrap_or(127)).unwrap_or(127)
    };
    Count::read(&logs, status)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    symlink(from, to).doing("linking", to)
}

/// Our kernel, the agent in an initial RAM disk, and the agent as the first process of a root disk.
fn real_guest(payload: &Path) -> Result<()> {
    let kernel = kernel::kernel(&kernel::Options::default())?;
    let agent = build::agent()?;
    let disks = rootfs::guest_disks(&agent, &testbed::prepare()?, &testbed::modetest()?)?;
    link(&kernel.vmlinux(), &payload.join("vmlinux"))?;
    link(&disks.ours, &payload.join("initrd"))?;
    let tree = payload.join("root");
    for dir in ["dev", "proc", "sys", "sys/kernel/debug", "tmp", "run", "sbin", "etc"] {
        fs::create_dir_all(tree.join(dir)).doing("creating", &tree)?;
    }
    fs::copy(&agent, tree.join("sbin/init")).doing("copying", &agent)?;
    if !run::in_path("mke2fs") {
        apt::ensure("a root disk", &["e2fsprogs"])?;
    }
    let image = payload.join("rootfs.ext4");
    let file = fs::File::create(&image).doing("creating", &image)?;
    file.set_len(ROOT_MIB << 20).doing("sizing", &image)?;
    run::quiet(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&image))
}

/// A guest that prints a line and resets itself on the first key.
fn tiny_guest(payload: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = payload.join(name);
        fs::write(&path, bytes).doing("writing", &path)
    };
    write("vmlinux", &tiny_guest::kernel(&tiny_guest::say_and_wait_for_a_key(b"ready\n")))?;
    write("initrd", b"not looked at")?;
    write("rootfs.ext4", &[0; 1 << 20])
}

/// Builds the clients; gives the program.
fn client_tests() -> Result<PathBuf> {
    eprintln!("building clients of Firecracker");
    let out = paths::target().join("clients");
    run::show(
        build::cargo()
            .current_dir(paths::workspace().join("tests/clients"))
            .args(["build", "--locked", "--quiet"])
            .env("CARGO_TARGET_DIR", &out),
    )?;
    Ok(out.join("debug/client-tests"))
}

/// A Python environment with the clients in Python; gives its interpreter.
fn python() -> Result<PathBuf> {
    let wanted = paths::workspace().join("tests/clients/requirements.txt");
    let text = fs::read_to_string(&wanted).doing("reading", &wanted)?;
    let dir = paths::target().join("clients/python");
    let (python, stamp) = (dir.join("bin/python3"), dir.join("requirements.txt"));
    let _lock = FileLock::acquire(&paths::target().join("clients/python.lock"))?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) {
        return Ok(python);
    }
    if !run::in_path("python3") {
        apt::ensure("a client in Python", &["python3", "python3-venv"])?;
    }
    eprintln!("installing clients of Firecracker in Python");
    let venv = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir).status();
    if !venv.is_ok_and(|status| status.success()) {
        apt::ensure("a client in Python", &["python3-venv"])?;
        run::quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"];
    run::quiet(Command::new(&python).args(pip).arg("-r").arg(&wanted))?;
    fs::write(&stamp, text).doing("writing", &stamp)?;
    if !python.is_file() {
        return task_error(format!("{} was not made", python.display()));
    }
    Ok(python)
}
