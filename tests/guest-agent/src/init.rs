// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mounts, kernel modules, power: what any first process does.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, finit_module, reboot};

/// One path of a module a line, in the order in which they can be loaded.
const MODULES: &str = "/etc/modules";

/// Files that a process may have open: enough to export thousands of buffers.
const OPEN_FILES: u64 = 1 << 16;

/// Lets this process have many files open.
pub(crate) fn allow_open_files() -> io::Result<()> {
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Mounts the file systems that everything needs.
pub(crate) fn mount_basics() -> io::Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        mount_new(kind, Path::new(at))?;
    }
    Ok(())
}

/// Mounts a file system without a device, creating its folder. One that the kernel has mounted
/// itself (devtmpfs, on a root that is not a RAM disk) is not changed.
pub(crate) fn mount_new(kind: &str, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    // A memory file system is limited by the memory there is, not to half of it.
    let data: Option<&CStr> = (kind == "tmpfs").then_some(c"size=100%");
    match mount(kind, at, kind, MountFlags::empty(), data) {
        Err(Errno::BUSY) => Ok(()),
        done => {
            done.map_err(|e| io::Error::other(format!("mounting {kind} at {}: {e}", at.display())))
        }
    }
}

/// Mounts what is of use for watching the kernel, where the kernel has it.
pub(crate) fn mount_debug() {
    for (kind, at) in [
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        if Path::new(at).is_dir() {
            // Absent from a stock kernel's lockdown; commands that need it will say so.
            let _ = mount(kind, at, kind, MountFlags::empty(), None);
        }
    }
}

/// Loads the modules that came with the initial RAM disk, if any.
pub(crate) fn load_modules() -> io::Result<()> {
    let Ok(list) = fs::read_to_string(MODULES) else { return Ok(()) };
    for path in list.lines().filter(|line| !line.is_empty()) {
        // KVM has a module a vendor, and only one of them loads.
        if let Err(error) = finit_module(File::open(path)?, c"", 0) {
            eprintln!("ballast-agent: {path}: {error}");
        }
    }
    Ok(())
}

/// Ends the machine. A kernel without a way to power off halts.
pub(crate) fn power_off() -> ! {
    end(RebootCommand::PowerOff)
}

/// Resets the machine.
pub(crate) fn restart() -> ! {
    end(RebootCommand::Restart)
}

fn end(how: RebootCommand) -> ! {
    rustix::fs::sync();
    let _ = reboot(how);
    loop {
        std::thread::park();
    }
}
