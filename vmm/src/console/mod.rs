// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of the serial console: destination of output and source of input.
//!
//! Output never makes a vCPU wait: it goes into a bounded ring or backlog, and output beyond its
//! capacity is dropped and counted. Input is read only while the guest has room for it.
//!
//! May use: `host`, `config`, `devices::legacy`. Runs on the main thread's event loop.
//!
//! - `tty.rs`: standard input and output, with the escape sequence of a raw terminal
//! - `attachable.rs`: a pseudo-terminal, or a socket that clients connect to at any time
//! - `backlog.rs`: output buffer between a vCPU and `attachable`
//! - `feed.rs`: input buffer for the serial port

mod attachable;
mod backlog;
mod feed;
mod tty;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use devices::legacy::SerialPort;

pub use self::attachable::Attachable;
use self::backlog::Backlog;
pub use self::feed::Feed;
use self::tty::TtyInput;
use crate::config::ConsoleConfig;
use crate::event_loop::Subscriber;
use crate::exit::ExitSignal;
use crate::host::descriptor::{self, Descriptor};
use crate::host::files::LimitedFile;
use crate::host::ring::{LostWatch, Ring};
use crate::host::sockets::{Listener, SocketError};
use crate::host::terminal::Pty;

/// Bytes of output that may wait for their reader.
const CAPACITY: usize = 64 << 10;
/// Most bytes of the console's file, and of the one before it.
const FILE_LIMIT: u64 = 64 << 20;

/// The console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Standard output cannot be used.
    #[error("cannot use standard output: {0}")]
    Stdout(io::Error),
    /// The terminal cannot be used.
    #[error("cannot use the terminal for input: {0}")]
    Terminal(io::Error),
    /// The file cannot be opened.
    #[error("cannot open {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// There is no pseudo-terminal.
    #[error("cannot open a pseudo-terminal: {0}")]
    Pty(io::Error),
    /// The socket cannot be made.
    #[error("socket {0}")]
    Socket(#[from] SocketError),
    /// No descriptor is left.
    #[error("cannot create an event: {0}")]
    Event(io::Error),
}

/// A console that is open, before there is a serial port.
pub struct Console {
    /// The sink of the serial port.
    pub output: Box<dyn Write + Send>,
    /// The source of input for the serial port.
    pub input: ConsoleInput,
    /// Count of lost output.
    pub lost: LostOutput,
}

/// Reads the amount of lost output.
pub struct LostOutput(Where);

/// Where output waits for its reader.
enum Where {
    Nowhere,
    Ring(LostWatch),
    Backlog(Backlog),
}

impl LostOutput {
    /// Bytes lost so far.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Where::Nowhere => 0,
            Where::Ring(watch) => watch.lost().bytes,
            Where::Backlog(backlog) => backlog.all_lost(),
        }
    }
}

/// The source of a console's input.
pub enum ConsoleInput {
    /// From nowhere.
    None,
    /// Standard input.
    Tty,
    /// A pseudo-terminal or socket.
    Attachable(Attachable),
}

impl Console {
    /// Opens what `config` names.
    ///
    /// # Errors
    ///
    /// What the host refused.
    pub fn open(config: &ConsoleConfig) -> Result<Self, ConsoleError> {
        let through_ring = |sink, input| {
            let ring = Ring::new("console", CAPACITY, sink);
            let lost = LostOutput(Where::Ring(ring.watch()));
            Self { output: Box::new(ring), input, lost }
        };
        let attachable = |backlog: Backlog, input| {
            let lost = LostOutput(Where::Backlog(backlog.clone()));
            Self { output: Box::new(backlog), input: ConsoleInput::Attachable(input), lost }
        };
        match config {
            // A separate descriptor, without the buffer and the lock of the standard library.
            ConsoleConfig::Tty => {
                let stdout = rustix::io::dup(io::stdout());
                let stdout = stdout.map_err(|error| ConsoleError::Stdout(error.into()))?;
                Ok(through_ring(Box::new(Descriptor(stdout)), ConsoleInput::Tty))
            }
            ConsoleConfig::File(path) => {
                let failed = |cause| ConsoleError::File { path: path.clone(), cause };
                let file = LimitedFile::open(path, FILE_LIMIT).map_err(failed)?;
                Ok(through_ring(Box::new(file), ConsoleInput::None))
            }
            ConsoleConfig::Null => {
                let lost = LostOutput(Where::Nowhere);
                Ok(Self { output: Box::new(io::sink()), input: ConsoleInput::None, lost })
            }
            ConsoleConfig::Pty => {
                let pty = Pty::open().map_err(ConsoleError::Pty)?;
                let backlog = Backlog::new(CAPACITY).map_err(ConsoleError::Event)?;
                descriptor::say(&format!("console on {}", pty.path.display()));
                Ok(attachable(backlog.clone(), Attachable::on_pty(pty, backlog)))
            }
            ConsoleConfig::Socket(path) => {
                let listener = Listener::bind(path)?;
                let backlog = Backlog::new(CAPACITY).map_err(ConsoleError::Event)?;
                Ok(attachable(backlog.clone(), Attachable::on_socket(listener, backlog)))
            }
        }
    }
}

impl ConsoleInput {
    /// The event-loop subscriber that feeds `serial`; `None` without input.
    ///
    /// # Errors
    ///
    /// Where the terminal refuses.
    pub fn connect(
        self,
        serial: Arc<SerialPort>,
        exit: Arc<ExitSignal>,
    ) -> Result<Option<Subscriber>, ConsoleError> {
        Ok(match self {
            Self::None => None,
            Self::Tty => {
                let input = TtyInput::new(serial, exit).map_err(ConsoleError::Terminal)?;
                Some(Box::new(input))
            }
            Self::Attachable(attachable) => Some(attachable.connect(serial)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_output_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        for _ in 0..2 {
            let mut console = Console::open(&ConsoleConfig::File(path.clone())).unwrap();
            console.output.write_all(b"x").unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"xx");
        assert!(Console::open(&ConsoleConfig::File(dir.path().into())).is_err());
    }
}
