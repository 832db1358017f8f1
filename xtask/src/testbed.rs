// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask testbed`: the parts of the outer machine and the stock guest. Debian's QEMU is
//! installed; Debian's 6.12 kernel package is only unpacked into the cache, so that neither /boot
//! nor /lib/modules changes and no initramfs script runs. So are programs for guests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, Result, task_error};
use crate::lock::FileLock;
use crate::{apt, debian, paths, run};

/// The package whose dependency is the kernel package itself.
const META_PACKAGE: &str = "linux-image-6.12-amd64";
const TOOLS: [&str; 3] = ["kmod", "qemu-system-x86", "xz-utils"];

/// The packages of `modetest`, a client of DRM devices: its own, and the library's.
const DRM_PACKAGES: [&str; 2] = ["libdrm-tests", "libdrm2"];
/// Where Debian has libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A program of Debian's, for a guest.
#[derive(Debug)]
pub(crate) struct GuestProgram {
    /// Path in the guest, and the file on this machine, of all that it is made of.
    pub(crate) files: Vec<(String, PathBuf)>,
}

impl GuestProgram {
    /// A program of this machine, at `/usr/bin` in the guest, with its libraries.
    pub(crate) fn installed(name: &str, package: &str) -> Result<Self> {
        let binary = debian::program(name, package)?;
        let mut files = vec![(format!("usr/bin/{name}"), binary.clone())];
        for library in debian::libraries(&binary, None) {
            let inside = library.to_string_lossy().trim_start_matches('/').to_owned();
            files.push((inside, library));
        }
        Ok(Self { files })
    }
}

/// Returns `/usr/bin/modetest`, from the cache if present.
pub(crate) fn modetest() -> Result<GuestProgram> {
    let cache = paths::cache()?.join("testbed");
    fs::create_dir_all(&cache).doing("creating", &cache)?;
    let _lock = FileLock::acquire(&cache.join("lock"))?;
    let entry = cache.join("modetest");
    if !entry.is_dir() {
        let work = tempfile::tempdir_in(&cache).doing("creating a folder in", &cache)?;
        let tree = work.path().join("tree");
        for package in DRM_PACKAGES {
            debian::unpack(package, &cache, &tree)?;
        }
        fs::rename(&tree, &entry).doing("moving into the cache", &entry)?;
    }
    let binary = entry.join("usr/bin/modetest");
    let mut files = vec![("usr/bin/modetest".to_owned(), binary.clone())];
    for library in debian::libraries(&binary, Some(&entry.join(LIBRARIES))) {
        // Where the loader looks by itself, in the guest.
        let inside = library.strip_prefix(&entry).or_else(|_| library.strip_prefix("/"));
        let inside = inside.unwrap_or(&library).to_string_lossy().into_owned();
        files.push((inside, library));
    }
    Ok(GuestProgram { files })
}

/// Debian's kernel, unpacked.
#[derive(Debug)]
pub(crate) struct StockKernel {
    /// The `bzImage`.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

/// Returns Debian's kernel, from the cache if present.
pub(crate) fn prepare() -> Result<StockKernel> {
    apt::ensure("the test bed", &TOOLS)?;
    let cache = paths::cache()?.join("testbed");
    fs::create_dir_all(&cache).doing("creating", &cache)?;
    let _lock = FileLock::acquire(&cache.join("lock"))?;
    let entry = cache.join("stock-kernel");
    if !entry.is_dir() {
        unpack(&cache, &entry)?;
    }
    StockKernel::find(&entry)
}

fn unpack(cache: &Path, entry: &Path) -> Result<()> {
    let package = match kernel_package()? {
        Some(name) => name,
        None => {
            apt::update()?;
            let Some(name) = kernel_package()? else {
                return task_error(format!(
                    "apt knows no kernel that {META_PACKAGE} depends on: is this Debian 12 with \
                     its updates?"
                ));
            };
            name
        }
    };
    let work = tempfile::tempdir_in(cache).doing("creating a folder in", cache)?;
    let tree = work.path().join("tree");
    debian::unpack(&package, cache, &tree)?;
    let version = only_entry(&tree.join("lib/modules"))?;
    run::quiet(Command::new("depmod").arg("-b").arg(&tree).arg(file_name(&version)))?;
    fs::rename(&tree, entry).doing("moving into the cache", entry)
}

/// The kernel package by name, if apt knows it.
fn kernel_package() -> Result<Option<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--important", META_PACKAGE]);
    let Ok(text) = run::capture(&mut command) else { return Ok(None) };
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-6.12."))
        .map(str::to_owned))
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).doing("reading", dir)?.flatten();
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => task_error(format!("{} should have exactly one entry", dir.display())),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A module's file name without folder and suffixes, with the underscores that the kernel uses.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

impl StockKernel {
    fn find(tree: &Path) -> Result<Self> {
        let modules = only_entry(&tree.join("lib/modules"))?;
        let image = tree.join("boot").join(format!("vmlinuz-{}", file_name(&modules)));
        if !image.is_file() {
            return task_error(format!("{} is missing: remove that folder", image.display()));
        }
        Ok(Self { image, modules })
    }

    /// The named modules and all that they depend on, uncompressed, in an order in which they can
    /// be loaded. Names that the kernel has built in are left out.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let list = self.modules.join("modules.dep");
        let text = fs::read_to_string(&list).doing("reading", &list)?;
        let builtin = self.modules.join("modules.builtin");
        let builtin: BTreeSet<String> = fs::read_to_string(&builtin)
            .doing("reading", &builtin)?
            .lines()
            .map(module_name)
            .collect();
        let mut dependencies = BTreeMap::new();
        for line in text.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                dependencies.insert(module_name(path), (path, needs));
            }
        }
        let mut order = Vec::new();
        for name in wanted.iter().filter(|name| !builtin.contains(**name)) {
            let Some((path, needs)) = dependencies.get(*name) else {
                return task_error(format!("Debian's kernel has no module {name}"));
            };
            // depmod lists what a module needs with the deepest dependency last.
            for path in needs.split_whitespace().rev().chain([*path]) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        order.into_iter().map(|path| Module::read(&self.modules, path)).collect()
    }
}

/// A kernel module.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) contents: Vec<u8>,
}

impl Module {
    fn read(root: &Path, path: &str) -> Result<Self> {
        let file = root.join(path);
        let contents = if path.ends_with(".xz") {
            run::capture_bytes(Command::new("xz").arg("-dc").arg(&file))?
        } else {
            fs::read(&file).doing("reading", &file)?
        };
        Ok(Self { name: module_name(path), contents })
    }
}

#[cfg(test)]
mod tests {
    use super::module_name;

    #[test]
    fn module_names_are_the_kernels() {
        assert_eq!(module_name("kernel/arch/x86/kvm/kvm-amd.ko.xz"), "kvm_amd");
        assert_eq!(module_name("kernel/fs/9p/9p.ko"), "9p");
    }
}
