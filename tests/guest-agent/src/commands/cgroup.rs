// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory control groups: the agent enters one with a limit, and leaves it again.

use std::fs;
use std::path::{Path, PathBuf};

use super::reason;
use crate::console::Answer;

const ROOT: &str = "/sys/fs/cgroup";

fn folder(name: &str) -> Result<PathBuf, String> {
    if name.is_empty() || name.contains(['/', '.']) {
        return Err(format!("not a name: {name}"));
    }
    Ok(Path::new(ROOT).join(name))
}

fn write(path: &Path, value: &str) -> Result<(), String> {
    fs::write(path, value).map_err(|e| reason(&format!("writing {}", path.display()))(&e))
}

/// `cgroup-enter NAME LIMIT`: makes the group, limits its memory, and moves the agent into it.
pub(crate) fn enter(name: &str, limit: usize) -> Answer {
    let group = folder(name)?;
    write(&Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
    fs::create_dir(&group).map_err(|e| reason("creating the group")(&e))?;
    write(&group.join("memory.max"), &limit.to_string())?;
    write(&group.join("cgroup.procs"), "0")?;
    Ok(vec![])
}

/// `cgroup-used NAME`: what the group is charged for, `current=` and of it `kernel=`, in bytes.
pub(crate) fn used(name: &str) -> Answer {
    let group = folder(name)?;
    let read = |file: &str| {
        fs::read_to_string(group.join(file)).map_err(|e| reason(&format!("reading {file}"))(&e))
    };
    let current = read("memory.current")?;
    let stat = read("memory.stat")?;
    let kernel = stat.lines().find_map(|line| line.strip_prefix("kernel ")).unwrap_or("0");
    Ok(vec![format!("current={}", current.trim()), format!("kernel={kernel}")])
}

/// `cgroup-leave`: moves the agent back to the root.
pub(crate) fn leave() -> Answer {
    write(&Path::new(ROOT).join("cgroup.procs"), "0")?;
    Ok(vec![])
}

#[cfg(test)]
mod tests {
    use super::folder;

    #[test]
    fn rejects_names_that_leave_the_folder() {
        assert!(folder("limited").is_ok());
        for name in ["", "..", "a/b", "cgroup.procs"] {
            assert!(folder(name).is_err(), "{name}");
        }
    }
}
