// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our patches: a quilt-style series, applied in order and without fuzz.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Result};
use crate::run;

/// One patch of the series.
#[derive(Debug)]
struct Patch {
    path: PathBuf,
    text: String,
}

/// The patches, in order.
#[derive(Debug)]
pub(crate) struct Series(Vec<Patch>);

impl Series {
    /// No patches: the stock kernel.
    pub(crate) fn empty() -> Self {
        Self(Vec::new())
    }

    /// Reads `folder/series`: one path below `folder/patches` a line, `#` starts a comment. A
    /// missing file is an empty series.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let list = folder.join("series");
        if !list.exists() {
            return Ok(Self::empty());
        }
        let text = fs::read_to_string(&list).doing("reading", &list)?;
        let patches = patch_names(&text)
            .map(|name| {
                let path = folder.join("patches").join(name);
                let text = fs::read_to_string(&path).doing("reading", &path)?;
                Ok(Patch { path, text })
            })
            .collect::<Result<_>>()?;
        Ok(Self(patches))
    }

    /// The paths of the patch files.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|patch| patch.path.as_path())
    }

    /// The identity of this series: its diffs, without their messages.
    pub(crate) fn identity(&self) -> String {
        self.0.iter().map(|patch| changes(&patch.text)).collect()
    }

    /// Applies every patch to `tree`, whose version is `version`.
    pub(crate) fn apply(&self, tree: &Path, version: &str) -> Result<()> {
        for Patch { path, .. } in &self.0 {
            let file = File::open(path).doing("reading", path)?;
            let output = Command::new("patch")
                .args(["-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch"])
                .arg("-d")
                .arg(tree)
                .stdin(Stdio::from(file))
                .output()
                .map_err(|source| Error::Spawn { program: "patch".into(), source })?;
            if !output.status.success() {
                return Err(Error::Task(format!(
                    "{} does not fit Linux {version} (patches must apply without fuzz):\n{}",
                    path.display(),
                    String::from_utf8_lossy(&output.stdout)
                )));
            }
        }
        Ok(())
    }

    /// Copies `tree` to `to` with the series applied. Files are hard links wherever a patch leaves
    /// them alone: `patch` replaces the files that it changes, it does not write into them.
    pub(crate) fn apply_to_copy(&self, tree: &Path, to: &Path, version: &str) -> Result<()> {
        let linked = run::quiet(Command::new("cp").arg("-al").arg(tree).arg(to));
        if linked.is_err() {
            // Another file system: a real copy.
            if to.exists() {
                fs::remove_dir_all(to).doing("removing", to)?;
            }
            run::quiet(Command::new("cp").args(["-a", "--reflink=auto"]).arg(tree).arg(to))?;
        }
        self.apply(to, version)
    }
}

/// A patch without the mail around it.
fn changes(patch: &str) -> &str {
    patch.find("\ndiff --git ").map_or(patch, |start| &patch[start + 1..])
}

fn patch_names(series: &str) -> impl Iterator<Item = &str> {
    series
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_skips_comments_and_blank_lines() {
        let names: Vec<_> = patch_names("# head\n\n 0001-a.patch \n0002-b.patch # why\n").collect();
        assert_eq!(names, ["0001-a.patch", "0002-b.patch"]);
    }

    #[test]
    fn a_message_is_no_part_of_what_a_patch_changes() {
        let diff = "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-one\n+two\n";
        assert_eq!(changes(&format!("Subject: x\n\nText.\n---\n f | 2 +-\n\n{diff}")), diff);
        assert_eq!(changes(diff), diff);
    }

    #[test]
    fn a_patch_that_needs_fuzz_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, folder) = (dir.path().join("tree"), dir.path().join("guest-kernel"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(folder.join("patches")).unwrap();
        fs::write(tree.join("f"), "one\nTWO\nthree\nfour\nfive\n").unwrap();
        fs::write(folder.join("series"), "0001-x.patch\n").unwrap();
        // The context says "two": only fuzz would make this fit.
        fs::write(
            folder.join("patches/0001-x.patch"),
            "--- a/f\n+++ b/f\n@@ -1,5 +1,5 @@\n one\n two\n-three\n+3\n four\n five\n",
        )
        .unwrap();
        let series = Series::read(&folder).unwrap();
        let error = series.apply(&tree, "6.12.1").unwrap_err().to_string();
        assert!(error.contains("0001-x.patch"), "{error}");
        assert!(error.contains("6.12.1"), "{error}");
    }

    #[test]
    fn patching_a_copy_leaves_the_original_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, folder) = (dir.path().join("tree"), dir.path().join("guest-kernel"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(folder.join("patches")).unwrap();
        fs::write(tree.join("f"), "one\ntwo\nthree\n").unwrap();
        fs::write(folder.join("series"), "0001-x.patch\n").unwrap();
        fs::write(
            folder.join("patches/0001-x.patch"),
            "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n",
        )
        .unwrap();
        let copy = dir.path().join("copy");
        Series::read(&folder).unwrap().apply_to_copy(&tree, &copy, "6.12.1").unwrap();
        assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(fs::read_to_string(copy.join("f")).unwrap(), "one\n2\nthree\n");
    }
}
