// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The load of `density.rs`: what the services have, and requests that are answered in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::service::{Part, Service};
use harness::{Error, Result, userland};

/// What a service keeps.
pub(crate) const DATA_MIB: usize = 96;
/// All of it.
pub(crate) const EVERYTHING: Part = Part { first: 0, count: DATA_MIB << 8 };
/// Requests of which the 99th percentile counts.
pub(crate) const WINDOW: usize = 200;
/// A guest that does not answer for so long is lost.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// What a request reads, but for a few.
const USUAL: Part = Part { first: 8192, count: 512 };
/// Pages of the request that reads another place.
const SELDOM: usize = 256;
/// Of a window, so many of the slowest requests are printed.
const SLOWEST: usize = 5;
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);
/// One guest of so many is hot.
const HOT_OF: usize = 8;

/// What all guests have: a disk, and the right answers.
pub(crate) struct Contents {
    pub(crate) disk: PathBuf,
    usual: u64,
    /// By place.
    seldom: Vec<u64>,
    /// Of everything.
    pub(crate) all: u64,
}

/// Response times in milliseconds.
pub(crate) struct Window {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The guests that took longest, and how long.
    pub(crate) slowest: Vec<(usize, f64)>,
}

impl Contents {
    pub(crate) fn write(disk: &Path) -> Result<Self> {
        userland::write(disk, DATA_MIB << 20)?;
        let data = fs::read(disk).map_err(Error::io("reading the disk"))?;
        let sum = |part: Part| {
            part.sum(&data).ok_or_else(|| Error::Check(format!("the disk has no {part:?}")))
        };
        let places = (DATA_MIB << 8) / SELDOM;
        let seldom = (0..places).map(|place| sum(seldom_part(place))).collect::<Result<_>>()?;
        let all = sum(EVERYTHING)?;
        Ok(Self { disk: disk.to_owned(), usual: sum(USUAL)?, seldom, all })
    }
}

fn seldom_part(place: usize) -> Part {
    Part { first: place * SELDOM, count: SELDOM }
}

/// The guest that request `turn` goes to.
fn whose(turn: usize, guests: usize) -> usize {
    match turn % 2 {
        0 => turn / 2 % guests,
        _ => turn / 2 % guests.div_ceil(HOT_OF) * HOT_OF,
    }
}

/// Sends `requests` requests, one after another, and checks the answers.
pub(crate) fn ask(services: &[&Service], contents: &Contents, requests: usize) -> Result<Window> {
    let mut times = Vec::new();
    for turn in 0..requests {
        std::thread::sleep(PAUSE);
        let number = whose(turn, services.len());
        let place = services.len() * 37 % contents.seldom.len();
        let (part, expected) = match turn {
            0 if requests >= WINDOW => (seldom_part(place), contents.seldom[place]),
            _ => (USUAL, contents.usual),
        };
        let (sum, took) = services[number].ask(part, ANSWER)?;
        harness::check!(sum == expected, "guest {number} answered wrongly to {part:?}: {sum:x}");
        times.push((took.as_secs_f64() * 1e3, number));
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let percentile = |share: usize| times[(times.len() * share).div_ceil(100) - 1].0;
    let slowest = times.iter().rev().take(SLOWEST).map(|&(took, number)| (number, took)).collect();
    Ok(Window { p50: percentile(50), p99: percentile(99), slowest })
}

/// Does something while the guests are asked: the times are not counted, the answers are.
pub(crate) fn while_asking<T: Send>(
    services: &[&Service],
    contents: &Contents,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    if services.is_empty() {
        return work();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                ask(services, contents, services.len() * 2)?;
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| Error::Check("the client panicked".into()))?;
        result.and_then(|result| asked.map(|()| result))
    })
}
