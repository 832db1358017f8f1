// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client that keeps drawing: it checks each page of its frames before it repaints it, flushes,
//! and flips from frame to frame.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use guest_agent::checksum;

use super::reason;
use crate::console::Answer;
use crate::drm::{Buffer, Card, Frame, Mapping, Screen};

/// Frames that the client flips between.
const FRAMES: usize = 3;
/// Pauses are counted by the power of two of their ticks, in this many classes.
const CLASSES: usize = 44;

/// Moved pages whose times are kept: enough for any percentile, and at most 2 MiB.
const MOVED_MAX: usize = 1 << 18;

/// The client, if it is drawing.
#[derive(Default)]
pub(crate) struct Drawing {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
    started: Option<Started>,
    held: Option<Held>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

/// Times are in ticks of the CPU's counter: a clock may stand for milliseconds in an emulated
/// machine.
#[derive(Default, Clone)]
struct Progress {
    frames: u64,
    pages: u64,
    damaged: u64,
    longest: u64,
    /// How often painting a page took so long.
    classes: Vec<u64>,
    /// How long it took for pages that had to be faulted in: those that
    /// had moved, for all of them have been painted before.
    moved: Vec<u64>,
}

/// A picture that stays.
struct Held {
    screen: Screen,
    frame: Frame,
    buffer: Buffer,
    mapping: Mapping,
    seed: u64,
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
        self.started = Some(Started { clock: Instant::now(), ticks: now() });
        let thread = std::thread::Builder::new()
            .spawn(move || draw(scanout, &shared))
            .map_err(|e| reason("thread")(&e))?;
        self.thread = Some(thread);
        Ok(vec![])
    }

    /// `screen-count`: `frames=`, `pages=` painted, `damaged=`; `p50_ns=` and `p99_ns=` are upper
    /// bounds of how long a page took, right to a factor of two; `longest_ns=` is the longest. `moved=` is
    /// how many of them had been moved, `moved_p50_ns=` and `moved_p99_ns=` how long these took.
    pub(crate) fn count(&self) -> Answer {
        let progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ns = |ticks: u64| self.started.map_or(0, |started| started.nanoseconds(ticks));
        Ok(vec![
            format!("frames={}", progress.frames),
            format!("pages={}", progress.pages),
            format!("damaged={}", progress.damaged),
            format!("p50_ns={}", ns(progress.percentile(50))),
            format!("p99_ns={}", ns(progress.percentile(99))),
            format!("longest_ns={}", ns(progress.longest)),
            format!("moved={}", progress.moved.len()),
            format!("moved_p50_ns={}", ns(exact_percentile(&progress.moved, 50))),
            format!("moved_p99_ns={}", ns(exact_percentile(&progress.moved, 99))),
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
        let held = Held::new(scanout, seed).map_err(|e| reason("screen")(&e))?;
        let answer = held.described();
        self.held = Some(held);
        Ok(answer)
    }

    /// `screen-repaint SEED`: checks the picture and paints another one in the same memory;
    /// `pages=`, `damaged=` and `seed=`.
    pub(crate) fn repaint(&mut self, seed: u64) -> Answer {
        let held = self.held.as_mut().ok_or("no picture is held")?;
        let mut answer = held.damage();
        held.paint(seed).map_err(|e| reason("screen")(&e))?;
        answer.push(format!("seed={seed}"));
        Ok(answer)
    }

    /// `screen-export`: exports the picture as a dma-buf, which is closed at once.
    pub(crate) fn export(&mut self) -> Answer {
        let held = self.held.as_ref().ok_or("no picture is held")?;
        held.buffer.export().map_err(|e| reason("export")(&e))?;
        Ok(vec![])
    }

    /// `screen-held`: `pages=` of the picture that is held, `damaged=`, and what `screen-hold` says.
    pub(crate) fn held(&self) -> Answer {
        let held = self.held.as_ref().ok_or("no picture is held")?;
        Ok(held.damage().into_iter().chain(held.described()).collect())
    }
}

impl Progress {
    fn painted(&mut self, took: u64) {
        self.longest = self.longest.max(took);
        self.classes.resize(CLASSES, 0);
        let class = (took.max(1).ilog2() as usize).min(CLASSES - 1);
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

/// When drawing began, by both clocks.
#[derive(Clone, Copy)]
struct Started {
    clock: Instant,
    ticks: u64,
}

impl Started {
    /// `ticks` by what they have been worth since.
    fn nanoseconds(self, ticks: u64) -> u64 {
        let passed = u128::from(now().wrapping_sub(self.ticks).max(1));
        (u128::from(ticks) * self.clock.elapsed().as_nanos() / passed) as u64
    }
}

/// The CPU's time stamp counter.
fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it to programs.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The given percentile of `values`; 0 if empty.
fn exact_percentile(values: &[u64], percent: usize) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0)
}

/// Page faults of this thread so far that needed no device.
fn faults() -> i64 {
    // SAFETY: the struct is plain numbers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is the one that the call fills, and lives through it.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    usage.ru_minflt
}

/// The seed of the client's frames in a round: no other pattern has its lowest byte.
fn frame_seed(round: u64) -> u64 {
    0xff | round << 8
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
        (0..mapping.pages()).for_each(|index| mapping.fill(frame_seed(0), index));
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
    // Written to once, so that it causes no faults of its own.
    let mut times = vec![(u64::MAX, false); mapping.pages()];
    let mut before = faults();
    for (index, time) in times.iter_mut().enumerate() {
        let start = now();
        damaged += u64::from(!mapping.is_intact(frame_seed(round), index));
        mapping.fill(frame_seed(round + 1), index);
        let (took, after) = (now().wrapping_sub(start), faults());
        *time = (took, after > before);
        before = after;
    }
    let mut progress = shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.frames += 1;
    progress.pages += times.len() as u64;
    progress.damaged += damaged;
    for (took, moved) in times {
        progress.painted(took);
        if moved && progress.moved.len() < MOVED_MAX {
            progress.moved.push(took);
        }
    }
}

impl Held {
    fn new(scanout: usize, seed: u64) -> io::Result<Self> {
        let card = Card::open()?;
        let screen = Screen::new(&card, scanout)?;
        let (width, height) = screen.size();
        let buffer = Buffer::dumb(&card, width, height)?;
        let mapping = buffer.map()?;
        let frame = screen.frame(&buffer)?;
        screen.show(&frame)?;
        let mut held = Self { screen, frame, buffer, mapping, seed };
        held.paint(seed)?;
        Ok(held)
    }

    fn paint(&mut self, seed: u64) -> io::Result<()> {
        self.seed = seed;
        (0..self.mapping.pages()).for_each(|index| self.mapping.fill(seed, index));
        self.screen.flush(&self.frame)
    }

    fn damage(&self) -> Vec<String> {
        let pages = self.mapping.pages();
        let damaged = (0..pages).filter(|&i| !self.mapping.is_intact(self.seed, i)).count();
        vec![format!("pages={pages}"), format!("damaged={damaged}")]
    }

    /// Size and checksum.
    fn described(&self) -> Vec<String> {
        let (width, height) = self.screen.size();
        let bytes = u64::from(width) * u64::from(height) * 4;
        let words = (0..self.mapping.pages()).flat_map(|index| self.mapping.page(index).iter());
        let checksum = words
            .flat_map(|word| word.to_le_bytes())
            .take(usize::try_from(bytes).unwrap_or(usize::MAX))
            .collect::<Vec<u8>>()
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[2], pixel[1], pixel[0]])
            .fold(checksum::START, checksum::add);
        vec![format!("width={width}"), format!("height={height}"), format!("checksum={checksum}")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_classes() {
        let mut progress = Progress::default();
        assert_eq!(progress.percentile(99), 0);
        for _ in 0..98 {
            progress.painted(700);
        }
        progress.painted(3_000);
        progress.painted(50_000);
        assert_eq!(progress.percentile(50), 1024);
        assert_eq!(progress.percentile(99), 4096);
        assert_eq!(progress.percentile(100), 65536);
        assert_eq!(progress.longest, 50_000);

        let values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(exact_percentile(&values, 50), 100);
        assert_eq!(exact_percentile(&values, 99), 198);
        assert_eq!(exact_percentile(&[], 99), 0);
    }
}
