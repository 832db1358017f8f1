// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What guests are started from: binaries, kernels, initial RAM disks. Put on the outer machine's
//! RAM disk, or in a folder in memory where guests run on this machine.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::build::{self, Profile, Programs};
use crate::error::{Error, IoContext, Result};
use crate::kernel::{self, Kernel};
use crate::outer::{self, Item, Job, Place, Size};
use crate::{debian, image, paths, rootfs, testbed};

/// Where the payload lies in the outer machine.
const INSIDE: &str = "payload";
/// The Debian image in it.
const IMAGE: &str = "debian.ext4";
/// Firmware that QEMU's microvm machine loads.
const QEMU_FIRMWARE: [&str; 3] = ["bios-microvm.bin", "linuxboot_dma.bin", "kvmvapic.bin"];

/// Which kernel the guests run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct KernelChoice {
    /// A directory with vmlinux and bzImage to use instead of building the guest kernel
    #[arg(long, value_name = "DIR", env = "BALLAST_KERNEL_DIR")]
    kernel: Option<PathBuf>,
    /// Run guests on the debug kernel (KASAN, lockdep and similar checks), which is slow
    #[arg(long, conflicts_with = "kernel")]
    pub(crate) debug: bool,
}

impl KernelChoice {
    /// The chosen kernel, built where it is missing.
    pub(crate) fn kernel(&self) -> Result<Kernel> {
        match &self.kernel {
            Some(dir) => Ok(Kernel { dir: dir.clone() }),
            None => kernel::kernel(&kernel::Options { debug: self.debug, ..Default::default() }),
        }
    }
}

/// Everything, built and at hand.
#[derive(Debug)]
pub(crate) struct Payload {
    agent: PathBuf,
    items: Vec<Item>,
    image: Option<Item>,
}

impl Payload {
    /// Builds what is missing.
    pub(crate) fn assemble(profile: Profile, choice: &KernelChoice) -> Result<Self> {
        let kernel = choice.kernel()?;
        let stock = testbed::prepare()?;
        let programs = build::programs(profile)?;
        let disks = rootfs::guest_disks(&programs.agent, &stock, &testbed::modetest()?)?;
        let Programs { ballast, agent, guest_tests, guest_bench, guest_demo } = programs;
        let items = [
            ("ballast", ballast),
            ("guest-tests", guest_tests),
            ("guest-bench", guest_bench),
            ("guest-demo", guest_demo),
            ("vmlinux", kernel.vmlinux()),
            ("bzImage", kernel.bz_image()),
            ("initrd", disks.ours),
            ("debian-vmlinuz", stock.image),
            ("debian-initrd", disks.stock),
            ("debian-devices-initrd", disks.stock_devices),
            ("debian-display-initrd", disks.stock_display),
        ]
        .into_iter()
        .map(|(name, from)| Item { path: format!("{INSIDE}/{name}"), from })
        .collect();
        Ok(Self { agent, items, image: None })
    }

    /// Adds the Debian image for tests, which is only read.
    pub(crate) fn add_image(&mut self) -> Result<()> {
        let from = image::cached(&image::Options::for_tests())?;
        self.image = Some(Item { path: format!("{INSIDE}/{IMAGE}"), from });
        Ok(())
    }

    /// Adds the file `from` as `name`.
    pub(crate) fn add_file(&mut self, name: &str, from: PathBuf) {
        self.items.push(Item { path: format!("{INSIDE}/{name}"), from });
    }

    /// Adds the binary `from` as `name`, with the libraries that it is linked with.
    pub(crate) fn add_program(&mut self, name: &str, from: &Path) -> Result<()> {
        self.add_file(name, from.to_owned());
        let mut known: BTreeSet<String> = self.items.iter().map(|item| item.path.clone()).collect();
        for library in debian::libraries(from, None) {
            let path = library.to_string_lossy().trim_start_matches('/').to_owned();
            if known.insert(path.clone()) {
                self.items.push(Item { path, from: library });
            }
        }
        Ok(())
    }

    /// Adds the binary `from` where it is on this machine, so that it is found by its name, with its
    /// libraries.
    pub(crate) fn add_installed(&mut self, from: &Path) {
        let known: BTreeSet<String> = self.items.iter().map(|item| item.path.clone()).collect();
        for file in debian::libraries(from, None).into_iter().chain([from.to_owned()]) {
            let path = file.to_string_lossy().trim_start_matches('/').to_owned();
            if !known.contains(&path) {
                self.items.push(Item { path, from: file });
            }
        }
    }

    /// Adds Debian's QEMU, to be the guests' monitor.
    pub(crate) fn add_qemu(&mut self, from: &Path) -> Result<()> {
        self.add_program("qemu-system-x86_64", from)?;
        for name in QEMU_FIRMWARE {
            for dir in ["/usr/share/qemu", "/usr/share/seabios"] {
                let from = Path::new(dir).join(name);
                if from.is_file() {
                    self.items.push(Item { path: format!("{INSIDE}/qemu-firmware/{name}"), from });
                    break;
                }
            }
        }
        Ok(())
    }

    /// Runs the payload's `program` with the payload's folder and one for logs (or results) as
    /// its first arguments; gives its exit status.
    pub(crate) fn run(
        &self,
        program: &str,
        arguments: &[OsString],
        size: Size,
        limit: Duration,
    ) -> Result<u8> {
        let results = results(program)?;
        match Place::choose() {
            Place::Here => self.run_here(program, arguments, &results),
            Place::Outer => self.run_outer(program, arguments, &results, size, limit),
        }
    }

    /// As [`run`](Self::run), on this machine, whether or not guests can run here; `results` exists.
    pub(crate) fn run_here(
        &self,
        program: &str,
        arguments: &[OsString],
        results: &Path,
    ) -> Result<u8> {
        let dir = tempfile::Builder::new()
            .prefix("ballast-payload-")
            .tempdir_in("/dev/shm")
            .doing("creating a folder in", "/dev/shm")?;
        for item in &self.items {
            // Libraries are where they belong on this machine.
            let Some(name) = item.path.strip_prefix(&format!("{INSIDE}/")) else { continue };
            let to = dir.path().join(name);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).doing("creating", parent)?;
            }
            fs::copy(&item.from, &to).doing("copying", &item.from)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).doing("changing", &to)?;
        }
        if let Some(image) = &self.image {
            let to = dir.path().join(IMAGE);
            symlink(&image.from, &to).doing("linking", &to)?;
        }
        let status = Command::new(dir.path().join(program))
            .arg("--payload")
            .arg(dir.path())
            .arg("--logs")
            .arg(results)
            .args(arguments)
            .status()
            .map_err(|source| Error::Spawn { program: program.into(), source })?;
        Ok(u8::try_from(status.code().unwrap_or(127)).unwrap_or(127))
    }

    /// As [`run`](Self::run), in the outer machine; `results` exists.
    pub(crate) fn run_outer(
        &self,
        program: &str,
        arguments: &[OsString],
        results: &Path,
        size: Size,
        limit: Duration,
    ) -> Result<u8> {
        let mut shared = OsString::from("/host");
        shared.push(results);
        let mut argv = vec![
            format!("/{INSIDE}/{program}").into(),
            "--payload".into(),
            format!("/{INSIDE}").into(),
            "--logs".into(),
            shared,
        ];
        argv.extend_from_slice(arguments);
        let job = Job {
            argv,
            in_host_tree: None,
            payload: self.items.clone(),
            image: self.image.clone(),
            size,
            limit,
            log: results.join("outer.log"),
        };
        outer::run(&job, &self.agent)
    }
}

/// An empty folder for the results of `program`.
pub(crate) fn results(program: &str) -> Result<PathBuf> {
    let results = paths::target().join("guest").join(program);
    if results.exists() {
        fs::remove_dir_all(&results).doing("emptying", &results)?;
    }
    fs::create_dir_all(&results).doing("creating", &results)?;
    Ok(results)
}
