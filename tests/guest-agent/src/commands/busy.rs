// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that keep writing to memory and check what they wrote before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::reason;
use crate::console::Answer;
use crate::region::Region;

/// What the threads have done since they were started.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    pages: AtomicU64,
    damaged: AtomicU64,
}

/// The threads, if any.
#[derive(Default)]
pub(crate) struct Busy {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// `busy-start THREADS SIZE`: each thread has memory of that size to itself.
    pub(crate) fn start(&mut self, threads: usize, bytes: usize) -> Answer {
        if !self.threads.is_empty() {
            return Err("busy already".into());
        }
        self.progress = Arc::default();
        for seed in (201..).take(threads) {
            let mut region = Region::map(bytes, seed, false).map_err(|e| reason("mapping")(&e))?;
            let progress = Arc::clone(&self.progress);
            let work = move || {
                region.fill();
                // The last round comes after the stop: every page is checked, however soon that
                // was.
                while !progress.stop.load(Ordering::Relaxed) {
                    round(&mut region, &progress);
                }
                round(&mut region, &progress);
            };
            let thread =
                std::thread::Builder::new().spawn(work).map_err(|e| reason("thread")(&e))?;
            self.threads.push(thread);
        }
        Ok(vec![])
    }

    /// `busy-count`: `pages=` rewritten so far, `damaged=`.
    pub(crate) fn count(&self) -> Answer {
        Ok(vec![
            format!("pages={}", self.progress.pages.load(Ordering::Relaxed)),
            format!("damaged={}", self.progress.damaged.load(Ordering::Relaxed)),
        ])
    }

    /// `busy-stop`: as `busy-count`, once all threads have ended.
    pub(crate) fn stop(&mut self) -> Answer {
        self.progress.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| "a thread panicked".to_owned())?;
        }
        self.count()
    }
}

/// Checks and rewrites every page once.
fn round(region: &mut Region, progress: &Progress) {
    for index in 0..region.pages() {
        let intact = region.rewrite(index);
        progress.pages.fetch_add(1, Ordering::Relaxed);
        progress.damaged.fetch_add(u64::from(!intact), Ordering::Relaxed);
    }
}
