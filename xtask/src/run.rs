// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running other programs: checked, quiet unless they fail, and with progress for the slow ones.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Lines of a failed program's output that are shown with the error.
const TAIL_LINES: usize = 40;
/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Whether `program` is in the PATH.
pub(crate) fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().take(3).map(OsStr::to_string_lossy).map(Into::into));
    if command.get_args().count() > 3 {
        words.push("...".into());
    }
    words.join(" ")
}

fn failure(command: &Command, status: ExitStatus, tail: &str) -> Error {
    let tail = if tail.trim().is_empty() { String::new() } else { format!(":\n{tail}") };
    Error::Command { program: name(command), ending: format!("failed ({status})"), tail }
}

fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    Error::Spawn { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// Runs `command` with its output going where ours goes.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|e| spawn_error(command, e))?;
    if status.success() { Ok(()) } else { Err(failure(command, status, "")) }
}

/// Runs `command` silently; its output becomes part of the error if it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    capture(command).map(drop)
}

/// Runs `command` and gives its standard output; standard error goes into the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&capture_bytes(command)?).into_owned())
}

/// As [`capture`], with what goes to standard error as well.
pub(crate) fn capture_all(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| spawn_error(command, e))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(text);
    }
    let tail: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(failure(command, output.status, &tail.join("\n")))
}

/// As [`capture`], for output that is not text.
pub(crate) fn capture_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| spawn_error(command, e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(failure(command, output.status, &tail.join("\n")))
}

/// Prints what comes from `output`, line by line, as several programs may run at the same time, and
/// shows each line to `see`.
pub(crate) fn pass_on(output: impl Read, mut see: impl FnMut(&str)) {
    for line in BufReader::new(output).split(b'\n').map_while(io::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // Nobody may be reading any more.
        let _ = writeln!(io::stdout(), "{line}");
        see(&line);
    }
}

/// Runs `command` with its output going where ours goes, and shows each line of its standard
/// output to `see` as well.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| spawn_error(command, e))?;
    if let Some(output) = child.stdout.take() {
        pass_on(output, &mut see);
    }
    let status = child.wait().map_err(|e| spawn_error(command, e))?;
    if status.success() { Ok(()) } else { Err(failure(command, status, "")) }
}

/// Runs a slow `command`: counts the lines of its standard output that `counts` picks, and prints
/// a line of progress every few seconds. Its last lines are shown only if it fails.
pub(crate) fn with_progress(
    command: &mut Command,
    what: &str,
    unit: &str,
    counts: impl Fn(&str) -> bool,
) -> Result<()> {
    let (reader, writer) = std::io::pipe().map_err(|e| spawn_error(command, e))?;
    let second = writer.try_clone().map_err(|e| spawn_error(command, e))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let started = Instant::now();
    let spawned = command.spawn();
    // The pipe ends only once our own copies of its writing end are gone.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|e| spawn_error(command, e))?;

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let (mut done, mut last) = (0_u64, Instant::now());
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap_or_default()).into_owned();
        done += u64::from(counts(&line));
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
        if last.elapsed() >= PROGRESS_EVERY {
            last = Instant::now();
            eprintln!("  {what}: {done} {unit}, {}", minutes(started.elapsed()));
        }
    }
    let status = child.wait().map_err(|e| spawn_error(command, e))?;
    if status.success() {
        eprintln!("  {what}: done, {done} {unit} in {}", minutes(started.elapsed()));
        return Ok(());
    }
    Err(failure(command, status, &Vec::from(tail).join("\n")))
}

/// `125 s` as `2m05s`.
pub(crate) fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}
