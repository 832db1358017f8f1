// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent in the guest, controlled over the serial console.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use guest_agent::READY;
use guest_agent::frame::{AnswerLine, Request};

use crate::console::{Console, Line};
use crate::limits::patient;
use crate::{Error, Result};

/// How long to wait for the rest of a garbled answer before asking again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Default timeout of a command. Guests may run nested in an emulated machine: this only stops
/// tests that hang.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Cloud Hypervisor reads so many bytes at a time from its console, and makes a carriage return of a
/// line feed that comes alone.
const CHUNK: usize = 64;

/// The harness's end of the conversation.
#[derive(Debug)]
pub struct Agent {
    console: Console,
    input: File,
    last_id: u32,
}

/// An answer in the course of arriving.
#[derive(Debug, Default)]
struct Arriving {
    lines: BTreeMap<u32, String>,
    end: Option<(u32, String)>,
}

/// Classification of a line from the guest for a command that waits for its answer.
#[derive(Debug)]
enum Came {
    /// The last that was missing.
    Answer(Vec<String>, String),
    /// The guest could not read the command.
    Refusal,
    /// Part of the answer, of which something else may be lost.
    Part,
}

impl Arriving {
    fn take(&mut self, line: AnswerLine) {
        if let Some(end) = line.payload.strip_prefix("end ") {
            self.end = Some((line.seq, end.to_owned()));
        } else {
            self.lines.insert(line.seq, line.payload);
        }
    }

    /// The lines and the end's words, once nothing is missing.
    fn complete(&mut self) -> Option<(Vec<String>, String)> {
        let (count, end) = self.end.clone()?;
        if (0..count).any(|seq| !self.lines.contains_key(&seq)) {
            return None;
        }
        Some((std::mem::take(&mut self.lines).into_values().collect(), end))
    }
}

impl Agent {
    /// Waits until the guest has booted to the agent; gives the line that says so.
    pub fn connect(console: Console, input: File, limit: Duration) -> Result<(Self, Line)> {
        let ready = console.wait_for(0, READY, patient(limit))?;
        Ok((Self { console, input, last_id: 0 }, ready))
    }

    /// Runs a command; returns the lines of the answer.
    pub fn command(&mut self, words: &str) -> Result<Vec<String>> {
        self.command_within(words, COMMAND_LIMIT)
    }

    /// As [`Self::command`], for those that may take long.
    pub fn command_within(&mut self, words: &str, limit: Duration) -> Result<Vec<String>> {
        let from = self.console.position();
        self.last_id += 1;
        let id = self.last_id;
        self.send(id, words)?;
        let (lines, end) = self.answer(id, words, from, patient(limit))?;
        match end.strip_prefix("err ") {
            None => Ok(lines),
            Some(reason) => Err(Error::Agent { command: words.into(), reason: reason.into() }),
        }
    }

    /// The answer's `key=value` lines as numbers.
    pub fn figures(&mut self, words: &str) -> Result<HashMap<String, u64>> {
        self.figures_within(words, COMMAND_LIMIT)
    }

    /// As [`Self::figures`], for commands that may take long.
    pub fn figures_within(&mut self, words: &str, limit: Duration) -> Result<HashMap<String, u64>> {
        let lines = self.command_within(words, limit)?;
        Ok(lines
            .iter()
            .filter_map(|line| line.split_once('='))
            .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// Sends a command without waiting for its answer: it ends the guest, or the test kills the guest.
    pub fn farewell(&mut self, words: &str) -> Result<()> {
        self.last_id += 1;
        self.send(self.last_id, words)
    }

    /// The guest's `/proc/meminfo`, in bytes.
    pub fn meminfo(&mut self) -> Result<HashMap<String, u64>> {
        Ok(crate::host::parse_meminfo(&self.command("read /proc/meminfo")?.join("\n")))
    }

    /// Counters of the guest's `/proc/vmstat`, in the order asked for; 0 for those that its kernel
    /// does not have.
    pub fn vmstat<const N: usize>(&mut self, names: [&str; N]) -> Result<[u64; N]> {
        let lines = self.command(&format!("pick /proc/vmstat {}", names.join(" ")))?;
        Ok(names.map(|name| {
            let mut fields = lines.iter().filter_map(|line| line.split_once(' '));
            let value =
                fields.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok());
            value.unwrap_or(0)
        }))
    }

    /// Starts threads that keep checking and rewriting `size` of memory each, and waits until they
    /// do: they fill it first. `busy-stop` ends them.
    pub fn start_busy(&mut self, threads: u32, size: &str) -> Result<()> {
        self.command(&format!("busy-start {threads} {size}"))?;
        let deadline = Instant::now() + COMMAND_LIMIT;
        while self.figures("busy-count")?.get("pages") == Some(&0) {
            crate::check!(Instant::now() < deadline, "the guest is too busy to check its memory");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends the test if memory or a file that the guest filled has changed. `words` is one of the
    /// verify commands.
    pub fn verify(&mut self, words: &str) -> Result<()> {
        let figures = self.figures(words)?;
        crate::check!(figures.get("pages").is_some_and(|&pages| pages > 0), "{words}: {figures:?}");
        crate::check!(figures.get("damaged") == Some(&0), "{words}: {figures:?}");
        Ok(())
    }

    fn send(&mut self, id: u32, words: &str) -> Result<()> {
        let mut line = Request { id, words: words.into() }.encode();
        if line.len() % CHUNK == 1 {
            // The agent passes over empty lines.
            line.insert(0, '\n');
        }
        self.input
            .write_all(line.as_bytes())
            .and_then(|()| self.input.flush())
            .map_err(Error::io(format!("sending `{words}` to the guest")))
    }

    fn answer(
        &mut self,
        id: u32,
        words: &str,
        mut from: usize,
        limit: Duration,
    ) -> Result<(Vec<String>, String)> {
        let deadline = Instant::now() + limit;
        let mut arriving = Arriving::default();
        // Set once something came that may have been part of the answer.
        let mut garbled = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if garbled { PATIENCE.min(left) } else { left };
            let mut seen = 0;
            let came =
                self.console.wait_map(from, &format!("the answer to `{words}`"), wait, |line| {
                    seen += 1;
                    let was_garbled = garbled;
                    match AnswerLine::decode(&line.text) {
                        Some(line) if line.id == id => arriving.take(line),
                        Some(line) if line.id == 0 => return Some(Came::Refusal),
                        Some(_) => {}
                        None => garbled |= line.text.contains('@'),
                    }
                    garbled |= arriving.end.is_some();
                    match arriving.complete() {
                        Some((lines, end)) => Some(Came::Answer(lines, end)),
                        // From here on less patience is called for.
                        None if garbled && !was_garbled => Some(Came::Part),
                        None => None,
                    }
                });
            from += seen;
            match came {
                Ok(Came::Answer(lines, end)) => return Ok((lines, end)),
                // Our request did not arrive whole.
                Ok(Came::Refusal) => self.send(id, words)?,
                Ok(Came::Part) => {}
                Err(Error::Timeout { .. }) if garbled && Instant::now() < deadline => {
                    garbled = false;
                    self.send(id, "again")?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u32, payload: &str) -> AnswerLine {
        AnswerLine { id: 1, seq, payload: payload.into() }
    }

    #[test]
    fn an_answer_is_complete_only_with_all_its_lines() {
        let mut arriving = Arriving::default();
        arriving.take(line(0, "a=1"));
        arriving.take(line(2, "end ok"));
        assert_eq!(arriving.complete(), None);
        // As after `again`: everything repeated, in any order.
        arriving.take(line(1, "b=2"));
        arriving.take(line(0, "a=1"));
        let expected = (vec!["a=1".to_owned(), "b=2".to_owned()], "ok".to_owned());
        assert_eq!(arriving.complete(), Some(expected));
    }
}
