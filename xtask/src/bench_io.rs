// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench io` in the outer machine: each part with each monitor in a machine of its own,
//! whose time passes by instructions. So one round suffices, and what is measured does not depend on
//! what was before it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{IoContext, Result};
use crate::outer::{Clock, Size};
use crate::payload::{self, Payload};

/// The program of the payload.
const PROGRAM: &str = "guest-bench";
/// What measures the load with no guest.
const LIMITS: &str = "limits";
const PARTS: [&str; 5] = [LIMITS, "disks", "tcp", "vsock", "debian"];
/// What one machine may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// What is to be measured: all, where a list is empty.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) only: &'a [String],
    pub(crate) parts: &'a [String],
    pub(crate) rounds: u32,
}

/// Measures all that is `wanted`; `arguments` name the bench and its peers. Gives the exit status of
/// the program that makes figures of it.
pub(crate) fn one_by_one(
    payload: &Payload,
    arguments: &[OsString],
    wanted: &Wanted<'_>,
    size: Size,
) -> Result<u8> {
    let size = Size { clock: Clock::Instructions, ..size };
    let results = payload::results(PROGRAM)?;
    let mut samples: Vec<PathBuf> = Vec::new();
    for (part, monitor) in pieces(&monitors(arguments), wanted) {
        println!("{part}, {monitor}");
        let dir = results.join(format!("{part}-{monitor}"));
        fs::create_dir_all(&dir).doing("creating", &dir)?;
        let mut words = arguments.to_vec();
        words.extend([
            "--values-only".into(),
            "--exact-clock".into(),
            format!("--rounds={}", wanted.rounds).into(),
            format!("--only={monitor}").into(),
            format!("--part={part}").into(),
        ]);
        match payload.run_outer(PROGRAM, &words, &dir, size, LIMIT) {
            Ok(0) => samples.push(dir.join("samples.json")),
            Ok(status) => eprintln!("{part}, {monitor}: the bench failed with status {status}"),
            Err(error) => eprintln!("{part}, {monitor}: {error}"),
        }
    }
    let mut words = arguments.to_vec();
    words.push("--rounds=0".into());
    for path in samples {
        words.push("--samples".into());
        words.push(path.into());
    }
    payload.run_here(PROGRAM, &words, &results)
}

/// Ballast, and those that the arguments name.
fn monitors(arguments: &[OsString]) -> Vec<String> {
    let peers = arguments.iter().filter_map(|word| word.to_str()?.strip_prefix("--peer="));
    let peers = peers.map(|peer| peer.split('=').next().unwrap_or(peer).to_owned());
    std::iter::once("ballast".to_owned()).chain(peers).collect()
}

/// Parts and monitors, in their order. The limits need none: Ballast stands for them.
fn pieces(monitors: &[String], wanted: &Wanted<'_>) -> Vec<(&'static str, String)> {
    let is_in = |list: &[String], word: &str| list.is_empty() || list.iter().any(|w| w == word);
    let mut pieces = Vec::new();
    for part in PARTS.into_iter().filter(|part| is_in(wanted.parts, part)) {
        for (number, monitor) in monitors.iter().enumerate() {
            let needed = if part == LIMITS { number == 0 } else { is_in(wanted.only, monitor) };
            // QEMU would need the host's vhost-vsock.
            if needed && !(part == "vsock" && monitor == "qemu") {
                pieces.push((part, monitor.clone()));
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_measured_with_each_monitor() {
        let arguments = ["io".into(), "--peer=firecracker".into(), "--peer=qemu=x".into()];
        let monitors = monitors(&arguments);
        let [only, parts]: [&[String]; 2] = [&[], &["vsock".into(), "limits".into()]];
        let all = pieces(&monitors, &Wanted { only, parts, rounds: 1 });
        let all: Vec<_> = all.iter().map(|(part, monitor)| (*part, monitor.as_str())).collect();
        assert_eq!(all, [("limits", "ballast"), ("vsock", "ballast"), ("vsock", "firecracker")]);
        let only = ["qemu".to_owned()];
        let of_qemu = pieces(&monitors, &Wanted { only: &only, parts: &[], rounds: 1 });
        let parts: Vec<_> = of_qemu.iter().map(|(part, _)| *part).collect();
        assert_eq!(parts, ["limits", "disks", "tcp", "debian"]);
    }
}
