// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Typical memory contents of a system: executables and libraries, with zero pages among them, as
//! in idle guests.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const PAGE: usize = 4096;
/// Smaller files are mostly scripts and text.
const MIN_FILE: u64 = 64 << 10;
/// One in this many pages is zero: idle guests were found to have 9.5 to 15 % of them.
const ZERO_OF: usize = 8;

/// Writes `bytes` of it to `to`. In the outer machine the host's files are taken, which are at /host.
pub fn write(to: &Path, bytes: usize) -> Result<()> {
    let doing = || Error::io(format!("writing {}", to.display()));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to).map_err(doing())?);
    let root = if Path::new("/host/usr").is_dir() { "/host/usr" } else { "/usr" };
    let mut folders = vec![Path::new(root).join("lib"), Path::new(root).join("bin")];
    let mut pages = 0;
    while let Some(folder) = folders.pop() {
        for path in sorted(&folder) {
            let Ok(meta) = path.symlink_metadata() else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() && meta.len() >= MIN_FILE {
                let wanted = (bytes / PAGE).saturating_sub(pages);
                pages += copy(&path, &mut out, pages, wanted).map_err(doing())?;
            }
            if pages >= bytes / PAGE {
                return out.flush().map_err(doing());
            }
        }
    }
    Err(Error::Check(format!("{root} has only {pages} pages of programs and libraries")))
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Copies at most `wanted` pages; returns how many.
fn copy(path: &Path, out: &mut impl Write, before: usize, wanted: usize) -> std::io::Result<usize> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    let mut pages = 0;
    loop {
        let mut read = 0;
        while read < chunk.len() {
            match file.read(&mut chunk[read..])? {
                0 => break,
                more => read += more,
            }
        }
        for page in chunk[..read].chunks_exact(PAGE) {
            if (before + pages).is_multiple_of(ZERO_OF) && pages < wanted {
                out.write_all(&[0; PAGE])?;
                pages += 1;
            }
            if pages == wanted {
                return Ok(pages);
            }
            out.write_all(page)?;
            pages += 1;
        }
        if read < chunk.len() {
            return Ok(pages);
        }
    }
}
