// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The image's file tree: Debian's packages by mmdebstrap, the files of `resources/debian-image`
//! over them, and what starts at boot.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::{apt, paths, run};

/// The release.
const SUITE: &str = "bookworm";
/// What the standard image has beside Debian's essential packages.
const PACKAGES: [&str; 8] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "openssh-server",
    "iproute2",
    "iputils-ping",
    "procps",
    "kmod",
];
/// What tests use. tcc is a C compiler of half a megabyte; gcc has two hundred.
const TEST_PACKAGES: [&str; 3] = ["tcc", "libc6-dev", "iperf3"];
/// Files excluded from packages: documentation, and names of hardware that microVMs do not have.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/lib/udev/hwdb.d/*",
];
/// Root's password, for the consoles only (`/etc/ssh/sshd_config.d/guest.conf`): docs/running.md has it.
const PASSWORD: &str = "ballast";
/// Enabled units.
const ENABLED: [&str; 4] =
    ["guest-shell.socket", "ssh-vsock.socket", "ssh.socket", "getty@tty1.service"];
/// Units that a guest has no use for: they take time or memory, or ask questions at the console.
const MASKED: [&str; 9] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-firstboot.service",
    // Logins on tty2 to tty6, which a display without a keyboard cannot switch to.
    "getty-static.service",
    // The kernel has no modules.
    "modprobe@.service",
];

/// The packages of a variant.
pub(super) fn packages(with_tests: bool) -> Vec<&'static str> {
    let more: &[&str] = if with_tests { &TEST_PACKAGES } else { &[] };
    [&PACKAGES, more].concat()
}

/// Files that lie over those of the packages.
#[derive(Debug)]
pub(super) struct Overlay {
    files: Vec<(PathBuf, Vec<u8>, u32)>,
}

impl Overlay {
    /// Reads `resources/debian-image`.
    pub(super) fn read() -> Result<Self> {
        let top = paths::workspace().join("resources/debian-image");
        let mut files = Vec::new();
        let mut folders = vec![top.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).doing("reading", &folder)?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mode = path.metadata().doing("reading", &path)?.permissions().mode();
                let mode = if mode & 0o100 != 0 { 0o755 } else { 0o644 };
                let contents = fs::read(&path).doing("reading", &path)?;
                let inside = path.strip_prefix(&top).unwrap_or(&path).to_owned();
                files.push((inside, contents, mode));
            }
        }
        files.sort();
        Ok(Self { files })
    }

    /// Changes with every byte of every file.
    pub(super) fn identity(&self) -> String {
        format!("{:?}", self.files)
    }

    fn put(&self, root: &Path) -> Result<()> {
        for (inside, contents, mode) in &self.files {
            write(&root.join(inside), contents, *mode)?;
        }
        Ok(())
    }
}

/// Makes the tree at `root`; `key` is a public key that may log in.
pub(super) fn build(
    root: &Path,
    with_tests: bool,
    overlay: &Overlay,
    key: Option<&str>,
) -> Result<()> {
    bootstrap(root, &packages(with_tests))?;
    overlay.put(root)?;
    let mkdir = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(&path).doing("creating", &path)
    };
    // Where `overlay-init` puts its layers.
    mkdir("overlay")?;
    mkdir("root/.ssh")?;
    let ssh = root.join("root/.ssh");
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700)).doing("changing", &ssh)?;
    if let Some(key) = key {
        write(&ssh.join("authorized_keys"), format!("{key}\n").as_bytes(), 0o600)?;
    }
    // The interface keeps the name that the kernel's `ip=` has for it, and the kernel says which
    // name server that word gave.
    link("/dev/null", &root.join("etc/systemd/network/99-default.link"))?;
    link("/proc/net/pnp", &root.join("etc/resolv.conf"))?;
    password(root)?;
    inside(root, "systemctl", &["disable", "ssh.service"])?;
    inside(root, "systemctl", &[&["enable"][..], &ENABLED].concat())?;
    inside(root, "systemctl", &[&["mask"][..], &MASKED].concat())
}

/// The last changes: nothing of the machine that built it, and no work for the first boot.
pub(super) fn finish(root: &Path) -> Result<()> {
    for name in ["ssh_host_ecdsa_key", "ssh_host_ed25519_key", "ssh_host_rsa_key"] {
        for suffix in ["", ".pub"] {
            remove(&root.join("etc/ssh").join(format!("{name}{suffix}")))?;
        }
    }
    // Without sources of hardware names this is all that is left of them.
    remove(&root.join("usr/lib/udev/hwdb.bin"))?;
    // Empty: each guest makes its own, and systemd does not take it for an installation.
    write(&root.join("etc/machine-id"), b"", 0o444)?;
    // systemd-update-done(8): caches are younger than /usr, so they are not rebuilt at boot.
    for folder in ["etc", "var"] {
        write(&root.join(folder).join(".updated"), b"", 0o644)?;
    }
    Ok(())
}

fn bootstrap(root: &Path, packages: &[&str]) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--verbose", "--mode=root", "--variant=minbase", "--format=directory"]);
    // The tree is thrown away if this fails: nothing has to be on the disk before the end.
    command.arg("--dpkgopt=force-unsafe-io");
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    command.arg(format!("--include={}", packages.join(","))).arg(SUITE).arg(root);
    // The sources of this machine, where they have this release: a mirror nearby.
    let sources = sources()?;
    if sources.is_empty() {
        eprintln!("apt has no source of {SUITE} here: mmdebstrap takes its own");
    } else {
        command.args(&sources);
    }
    run::with_progress(&mut command, "Debian image", "packages unpacked or set up", |line| {
        line.starts_with("Unpacking ") || line.starts_with("Setting up ")
    })
}

/// This machine's sources of the release, as lines of a `sources.list`.
fn sources() -> Result<Vec<String>> {
    if !run::in_path("apt-get") {
        return Ok(Vec::new());
    }
    let list = || {
        run::capture(
            apt::apt_get()
                .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
                .args(["Created-By: Packages", "Origin: Debian"]),
        )
    };
    let mut text = list()?;
    if text.is_empty() {
        apt::update()?;
        text = list()?;
    }
    let of_suite = |line: &&str| {
        let release = line.split_whitespace().nth(1).unwrap_or_default();
        release == SUITE || release.strip_prefix(SUITE).is_some_and(|rest| rest.starts_with('-'))
    };
    let mut lines: Vec<String> =
        text.lines().filter(of_suite).map(|line| format!("deb {line}")).collect();
    lines.dedup();
    Ok(lines)
}

fn password(root: &Path) -> Result<()> {
    let mut command = Command::new("chroot");
    let shell = format!("echo root:{PASSWORD} | chpasswd");
    run::quiet(command.arg(root).args(["/bin/sh", "-c", &shell]))
}

/// Runs a program of the tree in it.
pub(super) fn inside(root: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    run::quiet(Command::new("chroot").arg(root).arg(program).args(arguments))
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).doing("creating", parent)?;
    }
    remove(path)?;
    let mut file = fs::File::create(path).doing("creating", path)?;
    file.write_all(contents).doing("writing", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing("changing", path)
}

fn link(to: &str, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).doing("creating", parent)?;
    }
    remove(path)?;
    symlink(to, path).doing("linking", path)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            task_error(format!("removing {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_enabled_unit_of_ours_is_in_the_overlay() {
        let overlay = Overlay::read().unwrap();
        let has = |name: &str| overlay.files.iter().any(|(path, ..)| path.ends_with(name));
        for unit in ["guest-shell.socket", "ssh-vsock.socket"] {
            assert!(ENABLED.contains(&unit) && has(unit), "{unit}");
            // A socket that accepts starts a unit of its own name for each connection.
            assert!(has(&unit.replace(".socket", "@.service")), "{unit}");
        }
    }

    #[test]
    fn the_identity_changes_with_a_file() {
        let overlay = |byte| Overlay { files: vec![("etc/a".into(), vec![byte], 0o644)] };
        assert_ne!(overlay(1).identity(), overlay(2).identity());
    }
}
