// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The role in the outer machine: run one program, report its exit status, end the machine.
//!
//! Folder `/etc/outer` of the initial RAM disk has the task: `argv` (arguments, NUL-separated);
//! `chroot` (present: run in the host's file tree, in the folder that the file names); `alive` (a
//! file of the host's to be written to now and then, as a sign of life). The host's file tree is at
//! `/host` in any case.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::mount::{MountFlags, mount};

use crate::idle_vm::IdleVm;
use crate::{init, pulse};

/// The port of QEMU's isa-debug-exit device: QEMU ends with status 2 × value + 1.
const EXIT_PORT: u64 = 0xf4;
/// What the program's output goes to: a virtio console, quicker than a serial line and free of
/// the kernel's messages.
const OUTPUT: &str = "/dev/hvc0";

/// What the outer machine was started for.
pub(crate) struct Task {
    argv: Vec<Vec<u8>>,
    in_host_tree: Option<PathBuf>,
    alive: Option<PathBuf>,
}

impl Task {
    /// The task that the initial RAM disk came with; `None` in a guest.
    pub(crate) fn read() -> io::Result<Option<Self>> {
        let Ok(argv) = fs::read("/etc/outer/argv") else { return Ok(None) };
        let argv = argv.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
        let path = |file: &str| {
            let bytes = fs::read(Path::new("/etc/outer").join(file)).ok()?;
            Some(PathBuf::from(OsStr::from_bytes(&bytes)))
        };
        Ok(Some(Self { argv, in_host_tree: path("chroot"), alive: path("alive") }))
    }

    /// Runs the program to its end, then ends the machine.
    pub(crate) fn run(&self) -> io::Result<()> {
        fs::create_dir_all("/host")?;
        let options = c"trans=virtio,version=9p2000.L,msize=512000,access=any";
        mount("host", "/host", "9p", MountFlags::empty(), Some(options))
            .map_err(|e| io::Error::other(format!("mounting the host's file tree: {e}")))?;
        // Opened now: in the host's file tree other things will lie over it.
        let alive = self.alive.as_ref().map(|file| OpenOptions::new().write(true).open(file));
        let alive = alive.transpose()?;
        std::thread::spawn(move || pulse::keep(alive.as_ref()));
        // Before the way to /dev changes, and until the machine ends.
        let idle = IdleVm::new();
        if let Err(error) = &idle {
            eprintln!("ballast-agent: no virtual machine can be held: {error}");
        }
        let status = match self.command()?.status() {
            Ok(status) => exit_code(status),
            Err(error) => {
                eprintln!("ballast-agent: {}: {error}", String::from_utf8_lossy(&self.argv[0]));
                127
            }
        };
        rustix::fs::sync();
        let port = OpenOptions::new().write(true).open("/dev/port")?;
        // One is added so that no status of ours looks like an error of QEMU's own.
        port.write_all_at(&[status.min(126) + 1], EXIT_PORT)?;
        Ok(())
    }

    fn command(&self) -> io::Result<Command> {
        let words: Vec<&OsStr> = self.argv.iter().map(|word| OsStr::from_bytes(word)).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let output = OpenOptions::new().write(true).open(OUTPUT)?;
        raw_terminal(&output)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("BALLAST_OUTER", "1");
        if let Some(dir) = &self.in_host_tree {
            let root = Path::new("/host");
            for (kind, at) in [
                ("proc", "proc"),
                ("sysfs", "sys"),
                ("devtmpfs", "dev"),
                ("tmpfs", "dev/shm"),
                ("tmpfs", "tmp"),
                ("tmpfs", "run"),
            ] {
                init::mount_new(kind, &root.join(at))?;
            }
            rustix::process::chroot(root)?;
            command.current_dir(dir);
        }
        Ok(command)
    }
}

/// No carriage returns added to what the program writes.
fn raw_terminal(terminal: &fs::File) -> io::Result<()> {
    let mut settings = rustix::termios::tcgetattr(terminal)?;
    settings.make_raw();
    rustix::termios::tcsetattr(terminal, rustix::termios::OptionalActions::Now, &settings)?;
    Ok(())
}

/// As a shell has it: 128 and the signal for a program that a signal ended, kept below 128 by the
/// way out.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(127)
}
