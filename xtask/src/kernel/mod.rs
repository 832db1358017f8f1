// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask kernel`: the guest kernel, built once for each combination of source version,
//! patches and configuration.
//!
//! - `source.rs`  an unpacked Linux 6.12 tree: Debian's package, or the user's
//! - `series.rs`  our patches, applied without fuzz
//! - `config.rs`  the configuration, and whether the kernel took it
//! - `build.rs`   make, with progress, and the cache entry
//! - `matrix.rs`  the touched files in configurations that no test here runs
//! - `send.rs`    the series as mails
//! - `unit_tests.rs`  the series' KUnit tests, in QEMU

mod build;
mod config;
pub(crate) mod matrix;
pub(crate) mod send;
mod series;
mod source;
pub(crate) mod unit_tests;

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::lock::FileLock;
use crate::paths;

pub(crate) use series::Series;
pub(crate) use source::Source;

/// What to build.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Options {
    /// Build without Ballast's patches: Debian's stock kernel
    #[arg(long)]
    pub(crate) stock: bool,
    /// Add guest-kernel/configs/debug.config (KASAN, lockdep and similar checks)
    #[arg(long)]
    pub(crate) debug: bool,
    /// Build with guest-kernel/configs/kunit.config alone: the kernel runs unit tests when it boots
    #[arg(long, conflicts_with_all = ["stock", "debug"])]
    pub(crate) kunit: bool,
    /// A Linux 6.12 source tree, instead of Debian's linux-source-6.12
    #[arg(long, value_name = "TREE", env = "BALLAST_KERNEL_SOURCE")]
    pub(crate) source: Option<PathBuf>,
}

impl Options {
    /// The fragments of the configuration. Unit tests need no device and no user space: a small kernel
    /// is built in a third of the time.
    fn fragments(&self) -> &'static [&'static str] {
        match (self.kunit, self.debug) {
            (true, _) => &["kunit.config"],
            (false, true) => &["base.config", "debug.config"],
            (false, false) => &["base.config"],
        }
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) dir: PathBuf,
}

impl Kernel {
    /// The ELF image.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The compressed image with the boot protocol's header.
    pub(crate) fn bz_image(&self) -> PathBuf {
        self.dir.join("bzImage")
    }
}

/// Returns the kernel for `options`, from the cache if present.
pub(crate) fn kernel(options: &Options) -> Result<Kernel> {
    let source = Source::find(options.source.as_deref())?;
    let folder = paths::workspace().join("guest-kernel");
    let series = if options.stock { Series::empty() } else { Series::read(&folder)? };
    let config = config::Wanted::read(&folder.join("configs"), options.fragments())?;

    let mut hash = Sha256::new();
    for part in [source.identity(), &series.identity(), &config.identity()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let variant = match (options.stock, options.debug) {
        (false, false) if options.kunit => "ballast-kunit",
        (false, false) => "ballast",
        (true, false) => "stock",
        (false, true) => "ballast-debug",
        (true, true) => "stock-debug",
    };
    let name = format!("{}-{variant}-{digest}", source.version());

    let cache = paths::cache()?.join("kernel");
    std::fs::create_dir_all(&cache).map_err(|source| crate::error::Error::Io {
        doing: "creating",
        path: cache.clone(),
        source,
    })?;
    let kernel = Kernel { dir: cache.join(&name) };
    let _lock = FileLock::acquire(&cache.join(format!("{name}.lock")))?;
    if kernel.vmlinux().is_file() && kernel.bz_image().is_file() {
        eprintln!("kernel {name}: in the cache");
        return Ok(kernel);
    }
    eprintln!("kernel {name}: building");
    build::build(&source, &series, &config, &cache, &kernel.dir)?;
    Ok(kernel)
}
