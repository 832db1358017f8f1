// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that write to files of the kernel, such as its knobs, over and over.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::reason;
use crate::console::Answer;

/// The threads by name.
#[derive(Default)]
pub(crate) struct Writers(BTreeMap<String, Writer>);

struct Writer {
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    rounds: AtomicU64,
    refused: AtomicU64,
}

impl Writers {
    /// `repeat-start NAME PATH VALUE [PATH VALUE]...`: writes each value to its file, in turn.
    pub(crate) fn start(&mut self, name: &str, writes: &[&str]) -> Answer {
        if writes.is_empty() || !writes.len().is_multiple_of(2) {
            return Err("not pairs of path and value".into());
        }
        if self.0.contains_key(name) {
            return Err(format!("{name} is running already"));
        }
        let writes: Vec<(String, String)> =
            writes.chunks_exact(2).map(|pair| (pair[0].into(), pair[1].into())).collect();
        let counts = Arc::<Counts>::default();
        let thread = {
            let counts = Arc::clone(&counts);
            std::thread::Builder::new()
                .spawn(move || counts.work(&writes))
                .map_err(|e| reason("thread")(&e))?
        };
        self.0.insert(name.to_owned(), Writer { counts, thread });
        Ok(vec![])
    }

    /// `repeat-stop NAME`: ends it after a whole round; `rounds=`, `refused=` writes.
    pub(crate) fn stop(&mut self, name: &str) -> Answer {
        let Writer { counts, thread } =
            self.0.remove(name).ok_or_else(|| format!("{name} is not running"))?;
        counts.stop.store(true, Ordering::Relaxed);
        thread.join().map_err(|_| "a thread panicked".to_owned())?;
        Ok(vec![
            format!("rounds={}", counts.rounds.load(Ordering::Relaxed)),
            format!("refused={}", counts.refused.load(Ordering::Relaxed)),
        ])
    }
}

impl Counts {
    fn work(&self, writes: &[(String, String)]) {
        while !self.stop.load(Ordering::Relaxed) {
            for (path, value) in writes {
                let refused = fs::write(path, value).is_err();
                self.refused.fetch_add(u64::from(refused), Ordering::Relaxed);
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_refusals_are_counted() {
        let mut writers = Writers::default();
        assert!(writers.start("a", &["/dev/null"]).is_err());
        writers.start("a", &["/dev/null", "1", "/nowhere/at/all", "2"]).unwrap();
        assert!(writers.start("a", &["/dev/null", "1"]).is_err());
        let counts = Arc::clone(&writers.0["a"].counts);
        while counts.rounds.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        writers.stop("a").unwrap();
        let [rounds, refused] =
            [&counts.rounds, &counts.refused].map(|count| count.load(Ordering::Relaxed));
        assert!(rounds > 0 && refused == rounds, "{rounds} {refused}");
        assert!(writers.stop("a").is_err());
    }
}
