// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask rootfs debian`: a Debian 12 root file system as an ext4 image, for our kernel.
//!
//! - `tree.rs`     the file tree: packages, our files over them, services
//! - `packages.rs` a folder of packages from which a guest can install without a network
//!
//! The image is kept in the cache under a name derived from all its inputs; users boot a copy in
//! `target/debian`, so that the guest's changes persist and can be discarded.

mod packages;
mod tree;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result, task_error};
use crate::lock::FileLock;
use crate::{apt, paths, run};

/// What builds the image on this machine.
const TOOLS: [&str; 2] = ["mmdebstrap", "e2fsprogs"];
/// Size of the file system of an image for people, in MiB. The file is sparse.
const SIZE_MIB: u64 = 2048;
/// Of one for tests: some of it is copied for each guest.
const TEST_SIZE_MIB: u64 = 768;
/// The steps: an image that others made is another image.
const STEPS: [&str; 3] =
    [include_str!("mod.rs"), include_str!("tree.rs"), include_str!("packages.rs")];

/// What image is wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Options {
    /// Add a C compiler, iperf3 and a test package, for the guest tests
    #[arg(long)]
    pub(crate) with_tests: bool,
    /// Authorize this public key for root logins over SSH
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Size of the file system, in MiB (default 2048, or 768 with --with-tests)
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// Rebuild it even if the cache has one, for newer packages, and replace the copy
    #[arg(long)]
    fresh: bool,
}

impl Options {
    /// The image that guest tests and benches boot.
    pub(crate) fn for_tests() -> Self {
        Self { with_tests: true, ..Self::default() }
    }

    fn size_mib(&self) -> u64 {
        self.size.unwrap_or(if self.with_tests { TEST_SIZE_MIB } else { SIZE_MIB })
    }

    fn key(&self) -> Result<Option<String>> {
        let Some(path) = &self.ssh_key else { return Ok(None) };
        let text = fs::read_to_string(path).doing("reading", path)?;
        if text.contains("PRIVATE KEY") {
            return task_error(format!("{}: a private key: give the .pub file", path.display()));
        }
        Ok(Some(text.trim().to_owned()))
    }
}

/// Returns the image, from the cache if present. Do not change it: copy it.
pub(crate) fn cached(options: &Options) -> Result<PathBuf> {
    let overlay = tree::Overlay::read()?;
    let key = options.key()?;
    let identity = format!(
        "{STEPS:?} {} {} {key:?} {}",
        options.with_tests,
        options.size_mib(),
        overlay.identity()
    );
    let digest: String =
        Sha256::digest(identity).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let variant = if options.with_tests { "debian-tests" } else { "debian" };
    let cache = paths::cache()?.join("images");
    fs::create_dir_all(&cache).doing("creating", &cache)?;
    let entry = cache.join(format!("{variant}-{digest}.ext4"));
    let _lock = FileLock::acquire(&cache.join(format!("{variant}.lock")))?;
    if entry.is_file() && !options.fresh {
        eprintln!("image {}: in the cache", entry.display());
        return Ok(entry);
    }
    if !rustix::process::geteuid().is_root() {
        return task_error("building a Debian image needs root: its files belong to several users");
    }
    apt::ensure("the Debian image", &TOOLS)?;
    let started = Instant::now();
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(&cache)
        .doing("creating a folder in", &cache)?;
    let root = work.path().join("root");
    tree::build(&root, options.with_tests, &overlay, key.as_deref())?;
    if options.with_tests {
        packages::add(&root)?;
    }
    tree::finish(&root)?;
    let image = work.path().join("image");
    file_system(&root, &image, options.size_mib())?;
    fs::rename(&image, &entry).doing("moving into the cache", &entry)?;
    eprintln!(
        "image {}: {} MiB of {} used, built in {}",
        entry.display(),
        allocated_mib(&entry)?,
        options.size_mib(),
        run::minutes(started.elapsed())
    );
    Ok(entry)
}

/// Puts a copy of the image at `target/debian/rootfs.ext4` for `resources/*.json`, unless there is
/// one, which may have been worked in; and the kernel beside it. Gives the copy's path.
pub(crate) fn install(options: &Options, kernel: &Path) -> Result<PathBuf> {
    let dir = paths::target().join("debian");
    fs::create_dir_all(&dir).doing("creating", &dir)?;
    let image = cached(options)?;
    let vmlinux = dir.join("vmlinux");
    fs::copy(kernel, &vmlinux).doing("copying", kernel)?;
    let copy = dir.join("rootfs.ext4");
    if copy.exists() && !options.fresh {
        eprintln!("{}: kept; --fresh replaces it", copy.display());
        return Ok(copy);
    }
    run::quiet(
        Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&image).arg(&copy),
    )?;
    Ok(copy)
}

/// Makes an ext4 file system of the tree.
fn file_system(root: &Path, image: &Path, size_mib: u64) -> Result<()> {
    run::quiet(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "debian", "-m", "1", "-J", "size=16"])
            // For any kernel, in the guest or on this machine: no newer features.
            .args(["-O", "^metadata_csum_seed,^orphan_file"])
            .arg("-d")
            .arg(root)
            .arg(image)
            .arg(format!("{size_mib}M")),
    )?;
    // Bytes 0x38 and 0x39 of the superblock, which begins at 1024, say that it is ext (ext4(5)).
    let mut magic = [0; 2];
    let file = fs::File::open(image).doing("opening", image)?;
    file.read_exact_at(&mut magic, 1024 + 0x38).doing("reading", image)?;
    if u16::from_le_bytes(magic) != 0xef53 {
        return task_error(format!("{}: mke2fs made no file system", image.display()));
    }
    Ok(())
}

/// What the file takes on the disk.
fn allocated_mib(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok((fs::metadata(path).doing("reading", path)?.blocks() * 512) >> 20)
}
