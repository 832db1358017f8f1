// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What comes from a monitor's standard output: the guest's serial console.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Lines shown with an error.
const TAIL: usize = 25;

#[derive(Debug, Default)]
struct Shared {
    lines: Vec<Line>,
    /// Text after the last line ending: a prompt, or an incomplete line.
    rest: String,
    ended: bool,
}

impl Shared {
    /// Takes what was read; `bytes` are those of a line that is not whole yet.
    fn take(&mut self, read: &[u8], bytes: &mut Vec<u8>, ended: bool) {
        for piece in read.split_inclusive(|byte| *byte == b'\n') {
            bytes.extend_from_slice(piece);
            if bytes.ends_with(b"\n") {
                self.push(bytes);
            }
        }
        if ended && !bytes.is_empty() {
            self.push(bytes);
        }
        self.rest = String::from_utf8_lossy(bytes).into();
        self.ended = ended;
    }

    fn push(&mut self, bytes: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(bytes).trim_end_matches(['\r', '\n']).into();
        self.lines.push(Line { at: Instant::now(), text });
        bytes.clear();
    }
}

/// A line of the console.
#[derive(Debug, Clone)]
pub struct Line {
    /// When its end was read.
    pub at: Instant,
    /// Without the line's end.
    pub text: String,
}

/// Collects lines as they come; a copy of everything goes to a log file.
#[derive(Debug, Clone, Default)]
pub struct Console {
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl Console {
    /// Starts to read `source` in a thread of its own, which ends with the source.
    pub fn read(source: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let console = Self::default();
        let reader = console.clone();
        let mut log =
            File::create(log).map_err(Error::io(format!("creating {}", log.display())))?;
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            loop {
                let piece = source.fill_buf().unwrap_or_default();
                // A failure to write the log must not fail the test.
                let _ = log.write_all(piece);
                let (read, ended) = (piece.len(), piece.is_empty());
                reader.lock().take(piece, &mut bytes, ended);
                reader.shared.1.notify_all();
                if ended {
                    return;
                }
                source.consume(read);
            }
        });
        Ok(console)
    }

    /// Number of lines so far: a place to search from.
    pub fn position(&self) -> usize {
        self.lock().lines.len()
    }

    /// All lines so far, from `position` on.
    pub fn lines_from(&self, position: usize) -> Vec<Line> {
        self.lock().lines.get(position..).unwrap_or_default().to_vec()
    }

    /// Waits for a line that has `text` in it, among those from `position` on.
    pub fn wait_for(&self, position: usize, text: &str, limit: Duration) -> Result<Line> {
        let wanted = |line: &Line| line.text.contains(text).then(|| line.clone());
        self.wait_map(position, &format!("the line {text:?}"), limit, wanted)
    }

    /// Waits for `text` behind the last line's end, as a prompt is.
    pub fn wait_for_prompt(&self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("the prompt {text:?}");
        let deadline = Instant::now() + limit;
        let mut shared = self.lock();
        while !shared.rest.contains(text) {
            let tail = format!("{}    {}\n", tail(&shared.lines), shared.rest);
            if shared.ended {
                return Err(Error::Ended { what, tail });
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Error::Timeout { what, limit, tail });
            };
            let waited = self.shared.1.wait_timeout(shared, left);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Waits for a line for which `pick` returns a value; it sees each line once, in order.
    pub fn wait_map<T>(
        &self,
        position: usize,
        what: &str,
        limit: Duration,
        mut pick: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut next = position;
        let mut shared = self.lock();
        loop {
            while let Some(line) = shared.lines.get(next) {
                next += 1;
                if let Some(picked) = pick(line) {
                    return Ok(picked);
                }
            }
            let tail = tail(&shared.lines);
            if shared.ended {
                return Err(Error::Ended { what: what.into(), tail });
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Error::Timeout { what: what.into(), limit, tail });
            };
            let waited = self.shared.1.wait_timeout(shared, left);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last lines, for an error.
    pub fn tail(&self) -> String {
        tail(&self.lock().lines)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tail(lines: &[Line]) -> String {
    let from = lines.len().saturating_sub(TAIL);
    lines[from..].iter().map(|line| format!("    {}\n", line.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_lines_and_notices_the_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let console = Console::read(reader, log.path()).unwrap();
        writer.write_all(b"one\r\ntwo\n").unwrap();
        let limit = Duration::from_secs(20);
        assert_eq!(console.wait_for(0, "tw", limit).unwrap().text, "two");
        assert!(matches!(
            console.wait_for(2, "one", Duration::from_millis(1)),
            Err(Error::Timeout { .. })
        ));
        writer.write_all(b"log").unwrap();
        writer.write_all(b"in: ").unwrap();
        console.wait_for_prompt("login: ", limit).unwrap();
        drop(writer);
        assert!(matches!(console.wait_for(0, "three", limit), Err(Error::Ended { .. })));
        assert_eq!(console.wait_for(0, "login", limit).unwrap().text, "login: ");
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "one\r\ntwo\nlogin: ");
    }
}
