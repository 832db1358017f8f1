// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A monitor on a host that lacks features: an older kernel, no huge pages, a limit on memory,
//! other networks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_move,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Error, Result};

/// madvise(2).
const MADV_COLLAPSE: u64 = 25;
/// `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// How willingly the kernel kills the process that opens it (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What a kernel before 6.7 does not know (PAGEMAP_SCAN), and one before 6.1 (MADV_COLLAPSE): both
/// are answered with `errno`.
pub fn old_kernel(command: &mut Command, errno: i32) -> Result<()> {
    let words = |error: &dyn std::fmt::Display| Error::Check(format!("seccomp filter: {error}"));
    let argument = |index, len, value| {
        SeccompCondition::new(index, len, SeccompCmpOp::Eq, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| words(&error))
    };
    let rules = BTreeMap::from([
        (libc::SYS_madvise, vec![argument(2, SeccompCmpArgLen::Dword, MADV_COLLAPSE)?]),
        (libc::SYS_ioctl, vec![argument(1, SeccompCmpArgLen::Dword, PAGEMAP_SCAN)?]),
    ]);
    refuse(command, rules, errno)
}

/// What a kernel without userfaultfd(2) says.
pub fn without_userfaultfd(command: &mut Command) -> Result<()> {
    refuse(command, BTreeMap::from([(libc::SYS_userfaultfd, Vec::new())]), libc::ENOSYS)
}

/// Answers the calls that `rules` name with `errno`.
fn refuse(command: &mut Command, rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<()> {
    let words = |error: &dyn std::fmt::Display| Error::Check(format!("seccomp filter: {error}"));
    let refused = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64)
        .map_err(|error| words(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| words(&error))?;
    let install = move || seccompiler::apply_filter(&program).map_err(io::Error::other);
    // SAFETY: between fork and exec only two system calls are made; the program was built before.
    unsafe { command.pre_exec(install) };
    Ok(())
}

/// Moves this thread and its children to a new network namespace with only `lo`, which is down. It
/// is removed with its last process.
pub fn own_network() -> Result<()> {
    // SAFETY: changes which network the calling thread sees, and no memory.
    let failed = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if failed == 0 {
        return Ok(());
    }
    Err(Error::io("making a network namespace")(io::Error::last_os_error()))
}

/// Makes this process's root directory a mount with the same contents: programs that use
/// pivot_root(2) cannot do so in an initial RAM disk.
pub fn own_root() -> Result<()> {
    let doing = || Error::io("changing the root folder");
    // SAFETY: changes which mounts the calling thread sees, and no memory.
    let failed = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if failed != 0 {
        return Err(doing()(io::Error::last_os_error()));
    }
    let root = Path::new("/mnt");
    fs::create_dir_all(root).map_err(doing())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)
        .and_then(|()| mount_bind_recursive("/", root))
        .and_then(|()| rustix::process::chdir(root))
        // Over the old one: in a mere chroot(2) no user namespace can be made.
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|error| doing()(error.into()))
}

/// No transparent huge pages for the process, regardless of the host's setting.
pub fn without_huge_pages(command: &mut Command) -> Result<()> {
    let disable = || {
        // SAFETY: sets a flag of the calling process, which is the child here.
        let failed = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(disable) };
    Ok(())
}

/// A host that gives no huge pages at the first touch of memory, until this is dropped.
#[derive(Debug)]
pub struct NoHugePages {
    before: String,
}

impl NoHugePages {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

    /// Turns them off.
    pub fn from_now_on() -> Result<Self> {
        let path = Path::new(Self::SETTING);
        let all = fs::read_to_string(path).map_err(Error::io(Self::SETTING))?;
        let chosen =
            all.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let before = chosen.ok_or_else(|| Error::Check(format!("{}: {all}", Self::SETTING)))?;
        write(path, "never")?;
        Ok(Self { before: before.to_owned() })
    }
}

impl Drop for NoHugePages {
    fn drop(&mut self) {
        if let Err(error) = write(Path::new(Self::SETTING), &self.before) {
            eprintln!("huge pages stay off: {error}");
        }
    }
}

/// Makes the kernel kill others than this process when memory runs out; its children too, unless they
/// are [`expendable`].
pub fn indispensable() -> Result<()> {
    write(Path::new(OOM_SCORE), "-1000")
}

/// Starts `command` as a process that the kernel may kill when memory runs out.
pub fn expendable(command: &mut Command) -> Result<()> {
    let file = |path| fs::OpenOptions::new().write(true).open(path);
    let usual = move || {
        file(OOM_SCORE)
            .and_then(|file| rustix::io::write(&file, b"0").map(drop).map_err(Into::into))
    };
    // SAFETY: between fork and exec a file is opened and written to; no memory is allocated.
    unsafe { command.pre_exec(usual) };
    Ok(())
}

/// A control group (version 2) with a limit on memory; removed when dropped, if it is empty.
#[derive(Debug)]
pub struct MemoryGroup {
    dir: PathBuf,
}

impl MemoryGroup {
    /// A group of that name without a limit; mounts the file system if needed.
    pub fn new(name: &str) -> Result<Self> {
        let root = Path::new(CGROUPS);
        if !root.join("cgroup.controllers").exists() {
            mount("cgroup2", root, "cgroup2", MountFlags::empty(), None)
                .map_err(|error| Error::Check(format!("mounting {CGROUPS}: {error}")))?;
        }
        write(&root.join("cgroup.subtree_control"), "+memory")?;
        let dir = root.join(name);
        fs::create_dir_all(&dir).map_err(Error::io(format!("creating {}", dir.display())))?;
        Ok(Self { dir })
    }

    /// Starts `command` in the group, so that all its memory counts.
    pub fn admit(&self, command: &mut Command) -> Result<()> {
        let path = self.dir.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        let file = file.map_err(Error::io(format!("opening {}", path.display())))?;
        // 0 is the writing process.
        let enter = move || rustix::io::write(&file, b"0").map(drop).map_err(Into::into);
        // SAFETY: between fork and exec only one system call is made.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// Bytes that it uses.
    pub fn used(&self) -> Result<u64> {
        let path = self.dir.join("memory.current");
        let text = fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))?;
        text.trim().parse().map_err(|_| Error::Check(format!("{}: {text}", path.display())))
    }

    /// Throttles its processes above `bytes` instead of killing one, or removes that limit.
    pub fn throttle(&self, bytes: Option<u64>) -> Result<()> {
        let limit = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        write(&self.dir.join("memory.high"), &limit)
    }

    /// How many of its processes the OOM killer has killed.
    pub fn kills(&self) -> Result<u64> {
        let path = self.dir.join("memory.events");
        let text = fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = count.and_then(|count| count.trim().parse().ok());
        count.ok_or_else(|| Error::Check(format!("{}: {text}", path.display())))
    }

    /// Makes the kernel reclaim up to `bytes` of its memory, to swap if available.
    pub fn reclaim(&self, bytes: u64) {
        // The kernel reports EAGAIN if it was less.
        let _ = fs::write(self.dir.join("memory.reclaim"), bytes.to_string());
    }

    /// Limits it to `bytes`, or removes the limit.
    pub fn limit(&self, bytes: Option<u64>) -> Result<()> {
        let limit = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        write(&self.dir.join("memory.max"), &limit)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A leftover is harmless.
        let _ = fs::remove_dir(&self.dir);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("writing {text} to {}", path.display())))
}
