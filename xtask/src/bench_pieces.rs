// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Benches whose parts, `io`'s, or rows, `density`'s, are each measured in an outer machine of their
//! own, whose time passes by instructions. So one round suffices, and what is measured does not depend
//! on what was before it.

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
/// The rows of `density`, and whose they are.
const ROWS: [(&str, &str); 4] = [
    ("firecracker", "firecracker"),
    ("firecracker-reporting", "firecracker"),
    ("firecracker-zram", "firecracker"),
    ("ballast-dense", "ballast"),
];

/// What is measured in one machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    name: String,
    /// What the bench program is told in addition.
    words: Vec<OsString>,
}

/// What is to be measured: all, where a list is empty.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) only: &'a [String],
    pub(crate) parts: &'a [String],
    pub(crate) ways: &'a [String],
    pub(crate) rounds: u32,
}

impl Wanted<'_> {
    /// The pieces of `io`; `arguments` name the peers.
    pub(crate) fn of_io(&self, arguments: &[OsString]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in PARTS.into_iter().filter(|part| is_in(self.parts, part)) {
            for (number, monitor) in monitors(arguments).into_iter().enumerate() {
                // The limits need no monitor: Ballast stands for them.
                let needed = if part == LIMITS { number == 0 } else { is_in(self.only, &monitor) };
                // QEMU would need the host's vhost-vsock.
                if needed && !(part == "vsock" && monitor == "qemu") {
                    let words = vec![
                        "--exact-clock".into(),
                        format!("--rounds={}", self.rounds).into(),
                        format!("--only={monitor}").into(),
                        format!("--part={part}").into(),
                    ];
                    pieces.push(Piece { name: format!("{part}-{monitor}"), words });
                }
            }
        }
        pieces
    }

    /// The pieces of `density`, which has one round.
    pub(crate) fn of_density(&self, arguments: &[OsString]) -> Vec<Piece> {
        let monitors = monitors(arguments);
        let needed = |(row, monitor): &(&str, &str)| {
            let known = monitors.iter().any(|name| name == monitor);
            known && is_in(self.only, monitor) && is_in(self.ways, row)
        };
        let piece = |(row, _)| Piece {
            name: String::from(row),
            words: vec!["--exact-clock".into(), "--rounds=1".into(), format!("--way={row}").into()],
        };
        ROWS.into_iter().filter(needed).map(piece).collect()
    }
}

/// Measures all pieces; `arguments` name the bench and its peers, and `earlier` are files of earlier
/// runs. Gives the exit status of the program that makes figures of it all.
pub(crate) fn one_by_one(
    payload: &Payload,
    arguments: &[OsString],
    pieces: &[Piece],
    earlier: &[PathBuf],
    size: Size,
    limit: Duration,
) -> Result<u8> {
    let size = Size { clock: Clock::Instructions, ..size };
    // They may be among the results that the next line removes.
    let earlier = earlier.iter().map(|path| fs::read(path).doing("reading", path));
    let earlier = earlier.collect::<Result<Vec<_>>>()?;
    let results = payload::results(PROGRAM)?;
    let mut samples: Vec<PathBuf> = Vec::new();
    for (number, text) in earlier.iter().enumerate() {
        let path = results.join(format!("earlier-{number}.json"));
        fs::write(&path, text).doing("writing", &path)?;
        samples.push(path);
    }
    for Piece { name, words } in pieces {
        println!("{name}");
        let dir = results.join(name);
        fs::create_dir_all(&dir).doing("creating", &dir)?;
        let words = [arguments, &["--values-only".into()], words].concat();
        match payload.run_outer(PROGRAM, &words, &dir, size, limit) {
            Ok(0) => samples.push(dir.join("samples.json")),
            Ok(status) => eprintln!("{name}: the bench failed with status {status}"),
            Err(error) => eprintln!("{name}: {error}"),
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

fn is_in(list: &[String], word: &str) -> bool {
    list.is_empty() || list.iter().any(|known| known == word)
}

/// Ballast, and those that the arguments name.
fn monitors(arguments: &[OsString]) -> Vec<String> {
    let peers = arguments.iter().filter_map(|word| word.to_str()?.strip_prefix("--peer="));
    let peers = peers.map(|peer| peer.split('=').next().unwrap_or(peer).to_owned());
    std::iter::once("ballast".to_owned()).chain(peers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pieces: &[Piece]) -> Vec<&str> {
        pieces.iter().map(|piece| piece.name.as_str()).collect()
    }

    #[test]
    fn each_part_is_measured_with_each_monitor() {
        let arguments = ["io".into(), "--peer=firecracker".into(), "--peer=qemu=x".into()];
        let parts = ["vsock".to_owned(), "limits".to_owned()];
        let some = Wanted { parts: &parts, rounds: 1, ..Wanted::default() }.of_io(&arguments);
        assert_eq!(names(&some), ["limits-ballast", "vsock-ballast", "vsock-firecracker"]);
        let only = ["qemu".to_owned()];
        let of_qemu = Wanted { only: &only, ..Wanted::default() }.of_io(&arguments);
        let all = ["limits-ballast", "disks-qemu", "tcp-qemu", "debian-qemu"];
        assert_eq!(names(&of_qemu), all);
    }

    #[test]
    fn each_row_is_measured_if_its_monitor_is_there() {
        let alone = Wanted::default().of_density(&["density".into()]);
        assert_eq!(names(&alone), ["ballast-dense"]);
        let arguments = ["density".into(), "--peer=firecracker".into()];
        assert_eq!(Wanted::default().of_density(&arguments).len(), ROWS.len());
        let ways = ["firecracker-zram".to_owned()];
        let one = Wanted { ways: &ways, ..Wanted::default() }.of_density(&arguments);
        assert_eq!(one[0].words, ["--exact-clock", "--rounds=1", "--way=firecracker-zram"]);
        assert_eq!(one.len(), 1);
    }
}
