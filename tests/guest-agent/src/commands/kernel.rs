// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files of the kernel, programs, and ways for the machine to end.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::reason;
use crate::console::Answer;
use crate::init;

/// `read PATH`: the file's lines.
pub(crate) fn read(path: &str) -> Answer {
    let text = fs::read(path).map_err(|e| reason(path)(&e))?;
    Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
}

/// `pick PATH WORD...`: the file's lines whose first field is one of the words. A serial line is
/// slow: most of a long file is better left where it is.
pub(crate) fn pick(path: &str, words: &[&str]) -> Answer {
    let mut lines = read(path)?;
    lines.retain(|line| line.split_whitespace().next().is_some_and(|word| words.contains(&word)));
    Ok(lines)
}

/// `write PATH VALUE`: `ns=` that it took, since what is written to may be a knob that starts work.
pub(crate) fn write(path: &str, value: &str) -> Answer {
    let start = Instant::now();
    fs::write(path, value).map_err(|e| reason(path)(&e))?;
    Ok(vec![format!("ns={}", start.elapsed().as_nanos())])
}

/// `list PATH`: the names in a folder, sorted.
pub(crate) fn list(path: &str) -> Answer {
    let entries = fs::read_dir(path).map_err(|e| reason(path)(&e))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// `run PROGRAM ARGUMENTS`: its output; an error if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Answer {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| reason(program)(&e))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if !output.status.success() {
        return Err(format!("{program}: {}: {}", output.status, text(&output.stderr)));
    }
    Ok(text(&output.stdout).lines().map(str::to_owned).collect())
}

/// `poweroff`: does not answer.
pub(crate) fn power_off() -> Answer {
    init::power_off()
}

/// `reboot`: does not answer.
pub(crate) fn reboot() -> Answer {
    init::restart()
}

/// `panic`: does not answer, unless the kernel has no such thing.
pub(crate) fn panic() -> Answer {
    fs::write("/proc/sysrq-trigger", "c").map_err(|e| reason("sysrq")(&e))?;
    Err("the kernel did not panic".into())
}

/// `triple-fault`: reboots by what is the last resort of real machines.
pub(crate) fn triple_fault() -> Answer {
    // Only the command line can choose the way of a reboot (`reboot=t`); this asks for any.
    fs::write("/proc/sysrq-trigger", "b").map_err(|e| reason("sysrq")(&e))?;
    Err("the kernel did not reboot".into())
}
