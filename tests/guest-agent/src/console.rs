// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests in, answers out, over the console that the kernel gave the first process.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};

use guest_agent::READY;
use guest_agent::frame::{AnswerLine, Request};
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

/// An answer's lines, or the error.
pub(crate) type Answer = Result<Vec<String>, String>;

/// The serial console.
pub(crate) struct Console {
    input: BufReader<File>,
    output: File,
    last: String,
}

impl Console {
    /// Opens `/dev/console` and turns off all that a terminal does for a person.
    pub(crate) fn open() -> io::Result<Self> {
        let output = OpenOptions::new().read(true).write(true).open("/dev/console")?;
        let mut settings = tcgetattr(&output)?;
        settings.make_raw();
        tcsetattr(&output, OptionalActions::Now, &settings)?;
        Ok(Self { input: BufReader::new(output.try_clone()?), output, last: String::new() })
    }

    /// Says that requests are taken from now on.
    pub(crate) fn announce(&mut self) -> io::Result<()> {
        self.print(&format!("{READY}\n"))
    }

    /// Waits for a request. One that was garbled is answered at once, so that the harness sends
    /// it again; `again` repeats the last answer.
    pub(crate) fn next_request(&mut self) -> io::Result<Request> {
        loop {
            let mut line = Vec::new();
            if self.input.read_until(b'\n', &mut line)? == 0 {
                return Err(io::Error::other("the console was closed"));
            }
            let line = String::from_utf8_lossy(&line);
            match Request::decode(&line) {
                Some(request) if request.words == "again" => {
                    let last = self.last.clone();
                    self.print(&last)?;
                }
                Some(request) => return Ok(request),
                None if line.trim().is_empty() => {}
                None => {
                    let garbled = AnswerLine { id: 0, seq: 0, payload: "end err garbled".into() };
                    self.print(&garbled.encode())?;
                }
            }
        }
    }

    /// Sends an answer.
    pub(crate) fn answer(&mut self, id: u32, answer: Answer) -> io::Result<()> {
        let (mut lines, end) = match answer {
            Ok(lines) => (lines, "end ok".to_owned()),
            Err(reason) => (Vec::new(), format!("end err {}", reason.replace('\n', " "))),
        };
        lines.push(end);
        self.last = (0..)
            .zip(lines)
            .map(|(seq, payload)| AnswerLine { id, seq, payload }.encode())
            .collect();
        let text = self.last.clone();
        self.print(&text)
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        // A kernel message may have been cut short before us: start on a line of our own.
        self.output.write_all(b"\n")?;
        self.output.write_all(text.as_bytes())?;
        // A ring of io_uring that a command has dropped still interrupts this wait.
        Ok(retry_on_intr(|| tcdrain(&self.output))?)
    }
}
