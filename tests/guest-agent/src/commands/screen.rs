// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client that keeps drawing: it checks each page of its frames before it paints it anew,
//! flushes, and flips from frame to frame.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::reason;
use crate::console::Answer;
use crate::drm::{Buffer, Card, Frame, Mapping, Screen};

/// Frames that the client flips between.
const FRAMES: usize = 3;
/// Pauses are counted by the power of two of their nanoseconds, in this many classes.
const CLASSES: usize = 40;

/// The client, if it is drawing.
#[derive(Default)]
pub(crate) struct Drawing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
    held: Option<Held>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Default, Clone)]
struct Progress {
    frames: u64,
    pages: u64,
    damaged: u64,
    longest: Duration,
    /// How often painting a page took so long.
    classes: Vec<u64>,
}

/// A picture that stays.
struct Held {
    _frame: Frame,
    _buffer: Buffer,
}

impl Drawing {
    /// `screen-start SCANOUT`.
    pub(crate) fn start(&mut self, scanout: usize) -> Answer {
        if self.thread.is_some() {
            return Err("drawing already".into());
        }
        self.held = None;
        self.shared = Arc::default();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .spawn(move || draw(scanout, &shared))
            .map_err(|e| reason("thread")(&e))?;
        self.thread = Some(thread);
        Ok(vec![])
    }

    /// `screen-count`: `frames=`, `pages=` painted, `damaged=`; `p50_ns=` and `p99_ns=` are upper
    /// bounds of how long a page took, right to a factor of two; `longest_ns=` is exact.
    pub(crate) fn count(&self) -> Answer {
        let progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(vec![
            format!("frames={}", progress.frames),
            format!("pages={}", progress.pages),
            format!("damaged={}", progress.damaged),
            format!("p50_ns={}", progress.percentile(50)),
            format!("p99_ns={}", progress.percentile(99)),
            format!("longest_ns={}", progress.longest.as_nanos()),
        ])
    }

    /// `screen-stop`: as `screen-count`, once the client has ended.
    pub(crate) fn stop(&mut self) -> Answer {
        let thread = self.thread.take().ok_or("not drawing")?;
        self.shared.stop.store(true, Ordering::Relaxed);
        thread
            .join()
            .map_err(|_| "the client panicked".to_owned())?
            .map_err(|e| reason("drawing")(&e))?;
        self.count()
    }

    /// `screen-hold SCANOUT SEED`: shows a picture until the next command for the screen;
    /// `width=`, `height=`, `checksum=` over the red, green and blue of all pixels, row by row.
    pub(crate) fn hold(&mut self, scanout: usize, seed: u64) -> Answer {
        if self.thread.is_some() {
            return Err("drawing".into());
        }
        self.held = None;
        let (held, size, checksum) = hold(scanout, seed).map_err(|e| reason("screen")(&e))?;
        self.held = Some(held);
        Ok(vec![
            format!("width={}", size.0),
            format!("height={}", size.1),
            format!("checksum={checksum}"),
        ])
    }
}

impl Progress {
    fn painted(&mut self, took: Duration) {
        self.longest = self.longest.max(took);
        self.classes.resize(CLASSES, 0);
        let class = (took.as_nanos().max(1).ilog2() as usize).min(CLASSES - 1);
        self.classes[class] += 1;
    }

    fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.classes.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        for (class, count) in self.classes.iter().enumerate() {
            seen += count;
            if wanted > 0 && seen >= wanted {
                return 1 << (class + 1);
            }
        }
        0
    }
}

fn draw(scanout: usize, shared: &Shared) -> io::Result<()> {
    let card = Card::open()?;
    let screen = Screen::new(&card, scanout)?;
    let (width, height) = screen.size();
    let mut frames: Vec<(Frame, Buffer, Mapping)> = Vec::new();
    for _ in 0..FRAMES {
        let buffer = Buffer::dumb(&card, width, height)?;
        let mapping = buffer.map()?;
        frames.push((screen.frame(&buffer)?, buffer, mapping));
    }
    for (frame, _, mapping) in &mut frames {
        (0..mapping.pages()).for_each(|index| mapping.fill(0, index));
        screen.show(frame)?;
    }

    for round in 0_u64.. {
        for (frame, _, mapping) in &mut frames {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            paint(mapping, round, shared);
            match screen.flip(frame) {
                // The last flip has not been shown yet.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                other => other?,
            }
            screen.flush(frame)?;
        }
    }
    Ok(())
}

/// Paints a frame with the pattern of `round + 1` where that of `round` must be.
fn paint(mapping: &mut Mapping, round: u64, shared: &Shared) {
    let mut damaged = 0;
    let mut times = Vec::with_capacity(mapping.pages());
    for index in 0..mapping.pages() {
        let start = Instant::now();
        damaged += u64::from(!mapping.is_intact(round, index));
        mapping.fill(round + 1, index);
        times.push(start.elapsed());
    }
    let mut progress = shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.frames += 1;
    progress.pages += times.len() as u64;
    progress.damaged += damaged;
    times.into_iter().for_each(|took| progress.painted(took));
}

fn hold(scanout: usize, seed: u64) -> io::Result<(Held, (u32, u32), u64)> {
    let card = Card::open()?;
    let screen = Screen::new(&card, scanout)?;
    let (width, height) = screen.size();
    let buffer = Buffer::dumb(&card, width, height)?;
    let mut mapping = buffer.map()?;
    (0..mapping.pages()).for_each(|index| mapping.fill(seed, index));
    let frame = screen.frame(&buffer)?;
    screen.show(&frame)?;
    screen.flush(&frame)?;

    let bytes = u64::from(width) * u64::from(height) * 4;
    let words = (0..mapping.pages()).flat_map(|index| mapping.page(index).iter());
    let checksum = words
        .flat_map(|word| word.to_le_bytes())
        .take(usize::try_from(bytes).unwrap_or(usize::MAX))
        .collect::<Vec<u8>>()
        .chunks_exact(4)
        .flat_map(|pixel| [pixel[2], pixel[1], pixel[0]])
        .fold(FNV_START, fnv);
    Ok((Held { _frame: frame, _buffer: buffer }, (width, height), checksum))
}

/// Where 64-bit FNV-1a starts.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut progress = Progress::default();
        assert_eq!(progress.percentile(99), 0);
        for _ in 0..98 {
            progress.painted(Duration::from_nanos(700));
        }
        progress.painted(Duration::from_micros(3));
        progress.painted(Duration::from_micros(50));
        assert_eq!(progress.percentile(50), 1024);
        assert_eq!(progress.percentile(99), 4096);
        assert_eq!(progress.percentile(100), 65536);
        assert_eq!(progress.longest, Duration::from_micros(50));
    }

    #[test]
    fn checksum_is_fnv() {
        assert_eq!(b"foobar".iter().copied().fold(FNV_START, fnv), 0x8594_4171_f739_67e8);
    }
}
