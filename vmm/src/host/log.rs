// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor's log: one line an event, `TIME LEVEL target: message key=value …`, to standard
//! error, a file or a FIFO. Where and how much can change until the machine starts.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{LogLevel, LoggerConfig};

/// The log cannot go where it should.
#[derive(Debug, thiserror::Error)]
#[error("log file {}: {cause}", path.display())]
pub struct LogError {
    path: PathBuf,
    cause: io::Error,
}

type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

/// What can be changed about the log; cheap to clone.
#[derive(Clone)]
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    lines: reload::Handle<Lines, Filtered>,
    sink: Arc<Sink>,
}

impl Log {
    /// The process's log, on standard error, with warnings and errors. Once a process.
    pub fn init() -> Self {
        let (log, subscriber) = Self::build();
        // Fails if there is a log already; then that one stays, and this handle changes nothing.
        let _ = subscriber.try_init();
        log
    }

    fn build() -> (Self, impl SubscriberInitExt + tracing::Subscriber + Send + Sync) {
        let sink = Arc::new(Sink::default());
        let (filter_layer, filter) = reload::Layer::new(targets(LogLevel::default(), None));
        let (line_layer, lines) = reload::Layer::new(lines(&sink, false));
        let subscriber = tracing_subscriber::registry().with(filter_layer).with(line_layer);
        (Self { filter, lines, sink }, subscriber)
    }

    /// Brings the log to what `config` says. Where that names a file and no level, information is
    /// logged too, as nobody's terminal is in the way.
    pub fn apply(&self, config: &LoggerConfig) -> Result<(), LogError> {
        if let Some(path) = &config.log_path {
            let file =
                open_for_lines(path).map_err(|cause| LogError { path: path.clone(), cause })?;
            *self.sink.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        }
        let level = config.level.unwrap_or(match config.log_path {
            Some(_) => LogLevel::Info,
            None => LogLevel::default(),
        });
        // Both fail only when the subscriber is gone, which lives as long as the process.
        let _ = self.lines.reload(lines(&self.sink, config.show_log_origin == Some(true)));
        let _ = self.filter.reload(targets(level, config.module.as_deref()));
        Ok(())
    }
}

fn targets(level: LogLevel, module: Option<&str>) -> Targets {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    match module {
        Some(module) => Targets::new().with_target(module, level),
        None => Targets::new().with_default(level),
    }
}

fn lines(sink: &Arc<Sink>, origin: bool) -> Lines {
    Box::new(
        fmt::layer()
            .with_ansi(false)
            .with_file(origin)
            .with_line_number(origin)
            .with_writer(Arc::clone(sink)),
    )
}

/// Opens a file or FIFO for lines of text, creating a file where nothing is.
///
/// Clients create FIFOs and may not read them yet: opened for reading too, that neither fails nor
/// waits; not blocking, a full one loses lines instead of stopping the machine.
pub(crate) fn open_for_lines(path: &Path) -> io::Result<File> {
    File::options().read(true).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Where lines go: a file, else standard error.
#[derive(Debug, Default)]
struct Sink(Mutex<Option<File>>);

impl Write for &Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write(line),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` with a log of its own that goes to a file; returns what is in it then.
    fn logged(config: &LoggerConfig, work: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (log, subscriber) = Log::build();
        let config = LoggerConfig { log_path: Some(path.clone()), ..config.clone() };
        tracing::subscriber::with_default(subscriber, || {
            log.apply(&config).unwrap();
            work();
        });
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn levels_and_fields() {
        let config = LoggerConfig { level: Some(LogLevel::Warning), ..LoggerConfig::default() };
        let text = logged(&config, || {
            tracing::info!("not this");
            tracing::warn!(block = 7, "this");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with(" WARN vmm::host::log::tests: this block=7\n"), "{text}");
    }

    #[test]
    fn a_file_gets_information_too() {
        let text = logged(&LoggerConfig::default(), || {
            tracing::info!("this");
            tracing::debug!("not this");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn origin_and_module() {
        let config = LoggerConfig {
            show_log_origin: Some(true),
            module: Some("elsewhere".into()),
            ..LoggerConfig::default()
        };
        let text = logged(&config, || {
            tracing::error!("not this");
            tracing::error!(target: "elsewhere::deep", "this");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("logging.rs:"), "{text}");
    }

    #[test]
    fn what_a_guest_wrote_cannot_forge_a_line() {
        let text = logged(&LoggerConfig::default(), || {
            tracing::error!(name = "x\n2026 ERROR forged", "escape \x1b[2J too");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn a_fifo_that_nobody_reads_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let sink = Sink(Mutex::new(Some(open_for_lines(&path).unwrap())));
        let line = [b'x'; 1024];
        let full = (0..1024).map(|_| (&sink).write(&line)).find(Result::is_err).unwrap();
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
