// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program of the initial RAM disk that runs until it is stopped: those that show something
//! do so until a key is pressed.

use std::process::{Child, Command, Stdio};

use super::reason;
use crate::console::Answer;

/// The program, if there is one.
#[derive(Default)]
pub(crate) struct Running(Option<Child>);

impl Running {
    /// `program-start PROGRAM ARGUMENT...`.
    pub(crate) fn start(&mut self, program: &str, arguments: &[&str]) -> Answer {
        if self.0.is_some() {
            return Err("a program is running already".into());
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| reason(program)(&e))?;
        self.0 = Some(child);
        Ok(vec![])
    }

    /// Whether a program was started and is no longer there, although it was not stopped.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// `program-stop`: ends the program's input, waits for it to end, and gives what it wrote; an
    /// error if it failed, or had ended before.
    pub(crate) fn stop(&mut self) -> Answer {
        let mut child = self.0.take().ok_or("no program is running")?;
        let early = child.try_wait().map_err(|e| reason("waiting")(&e))?;
        // Closes its standard input too.
        let output = child.wait_with_output().map_err(|e| reason("waiting")(&e))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if early.is_some() || !output.status.success() {
            return Err(format!(
                "{} (by itself: {}): {} {}",
                output.status,
                early.is_some(),
                text(&output.stdout),
                text(&output.stderr)
            ));
        }
        Ok(text(&output.stdout).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_its_input() {
        let mut running = Running::default();
        assert!(running.stop().is_err());
        running.start("/bin/sh", &["-c", "echo on; cat; echo off"]).unwrap();
        assert!(running.start("/bin/sh", &[]).is_err());
        assert_eq!(running.stop().unwrap(), ["on", "off"]);
        running.start("/bin/sh", &["-c", "cat; exit 3"]).unwrap();
        assert!(!running.has_ended());
        assert!(running.stop().is_err());
        assert!(!running.has_ended());
    }
}
