// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths: the checkout, cargo's target directory and the cache.

use std::env;
use std::fs;
use std::path::PathBuf;

use crate::error::{IoContext, Result, task_error};

/// The root of the checkout.
pub(crate) fn workspace() -> PathBuf {
    // xtask is a direct child of the root; cargo gives the folder at compile time.
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Cargo's output folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// `$XDG_CACHE_HOME/ballast`, or `~/.cache/ballast`: expensive build results outside the checkout.
/// Created if missing.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => return task_error("neither XDG_CACHE_HOME nor HOME is set: no place for the cache"),
    };
    let dir = base.join("ballast");
    fs::create_dir_all(&dir).doing("creating", &dir)?;
    Ok(dir)
}
