// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor's log: one line an event, `TIME LEVEL target: message key=value …`, or in Firecracker's
//! form (`log_format.rs`), to a standard stream, a file or a FIFO. Where and how much can change until
//! the machine starts.
//!
//! Lines go through a bounded ring, so that no reader holds up the thread that logs; a place in the
//! source that repeats itself is throttled in front of it.

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use super::descriptor::Descriptor;
use super::files::open_lines;
use super::log_format::FirecrackerFormat;
use super::ring::{Lost, Ring};
use super::spanless::Spanless;
use super::throttle::LogThrottle;
use crate::config::{LogLevel, LoggerConfig};
use crate::mode::StartMode;
use crate::one_line::one_line;

/// Bytes of lines that may wait for their reader.
const CAPACITY: usize = 64 << 10;

/// The log cannot go where it should.
#[derive(Debug, thiserror::Error)]
#[error("log file {}: {cause}", path.display())]
pub struct LogError {
    path: PathBuf,
    cause: io::Error,
}

type Filtered = Layered<LogThrottle, Layered<reload::Layer<Targets, Spanless>, Spanless>>;
type LineLayer = Box<dyn Layer<Filtered> + Send + Sync>;

/// A handle to change the log's settings; cheap to clone.
#[derive(Clone)]
pub struct Log {
    filter: reload::Handle<Targets, Spanless>,
    lines: reload::Handle<LineLayer, Filtered>,
    sink: Arc<Sink>,
}

impl Log {
    /// The process's log, where, how and as much as `mode` has it, for a machine named `id`. Once a
    /// process.
    pub fn init(mode: StartMode, id: &str) -> Self {
        let (log, subscriber) = Self::build(mode, id);
        // Fails if there is already a log; then that one stays, and this handle has no effect.
        let _ = subscriber.try_init();
        log
    }

    fn build(
        mode: StartMode,
        id: &str,
    ) -> (Self, impl SubscriberInitExt + tracing::Subscriber + Send + Sync) {
        let sink = Arc::new(Sink { ring: Mutex::default(), mode, id: id.to_owned() });
        let (filter_layer, filter) = reload::Layer::new(targets(mode.log_level(), None));
        let reporter = Arc::clone(&sink);
        let report = move |place: &Metadata<'_>, count| reporter.report_suppressed(place, count);
        let throttle = LogThrottle::new(Arc::new(report));
        let (line_layer, lines) = reload::Layer::new(lines(&sink, &LoggerConfig::default()));
        let subscriber = Spanless.with(filter_layer).with(throttle).with(line_layer);
        (Self { filter, lines, sink }, subscriber)
    }

    /// Applies `config`. With a file and no level, the level is Info, as no terminal is affected.
    ///
    /// # Errors
    ///
    /// Where the file cannot be opened.
    pub fn apply(&self, config: &LoggerConfig) -> Result<(), LogError> {
        if let Some(path) = &config.log_path {
            let file = open_lines(path).map_err(|cause| LogError { path: path.clone(), cause })?;
            self.sink.redirect(file.into());
        }
        let level = config.level.unwrap_or(match config.log_path {
            Some(_) => LogLevel::Info,
            None => self.sink.mode.log_level(),
        });
        // Both fail only without the subscriber, which lives as long as the process.
        let _ = self.lines.reload(lines(&self.sink, config));
        let _ = self.filter.reload(targets(level, config.module.as_deref()));
        Ok(())
    }

    /// Lines that were dropped because their reader was slow.
    pub fn lost(&self) -> Lost {
        self.sink.ring().map(|ring| ring.lost()).unwrap_or_default()
    }

    /// Waits until all log lines are written, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        if let Some(ring) = self.sink.ring() {
            ring.flush(limit);
        }
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

fn lines(sink: &Arc<Sink>, config: &LoggerConfig) -> LineLayer {
    let layer = fmt::layer().with_ansi(false).with_writer(Arc::clone(sink));
    let origin = config.show_log_origin == Some(true);
    match sink.mode {
        StartMode::Ballast => Box::new(layer.with_file(origin).with_line_number(origin)),
        StartMode::Firecracker => Box::new(layer.event_format(FirecrackerFormat {
            id: sink.id.clone(),
            level: config.show_level == Some(true),
            origin,
        })),
    }
}

/// Destination of lines: a file, else a standard stream.
struct Sink {
    ring: Mutex<Option<Ring>>,
    mode: StartMode,
    id: String,
}

impl Sink {
    fn redirect(&self, to: OwnedFd) {
        let ring = Ring::new("log", CAPACITY, Box::new(Descriptor(to)));
        let before = self.ring.lock().unwrap_or_else(PoisonError::into_inner).replace(ring);
        // Dropping it may take a while; do that without the lock.
        drop(before);
    }

    /// The ring; that of a standard stream, the first time and unless redirected.
    fn ring(&self) -> Option<Ring> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.is_none() {
            let stream = match self.mode.logs_to_stdout() {
                true => rustix::io::dup(io::stdout()),
                false => rustix::io::dup(io::stderr()),
            };
            *ring = Some(Ring::new("log", CAPACITY, Box::new(Descriptor(stream.ok()?))));
        }
        ring.clone()
    }

    fn report_suppressed(&self, place: &Metadata<'_>, count: u64) {
        let mut line = String::new();
        // Writing to a string cannot fail.
        match self.mode {
            StartMode::Ballast => {
                let _ = SystemTime.format_time(&mut fmt::format::Writer::new(&mut line));
                let (level, target) = (place.level(), place.target());
                line.push_str(&format!(" {level:>5} {target}: "));
            }
            StartMode::Firecracker => {
                let format = FirecrackerFormat { id: self.id.clone(), level: false, origin: false };
                let _ = format.prefix(&mut line, place);
            }
        }
        line.push_str(&format!("suppressed {count} lines like the next\n"));
        if let Some(ring) = self.ring() {
            ring.push(line.as_bytes());
        }
    }
}

/// A record is one line, whatever names a client has put into it.
fn as_record(line: &[u8]) -> Cow<'_, [u8]> {
    let body = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    match one_line(&body) {
        Cow::Borrowed(_) => line.into(),
        Cow::Owned(escaped) => (escaped + "\n").into_bytes().into(),
    }
}

impl Write for &Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(ring) = self.ring() {
            ring.push(&as_record(line));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` with a separate log to a file; returns the file's contents.
    fn logged(config: &LoggerConfig, work: impl FnOnce()) -> String {
        logged_as(StartMode::Ballast, config, work)
    }

    fn logged_as(mode: StartMode, config: &LoggerConfig, work: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (log, subscriber) = Log::build(mode, "vm");
        let config = LoggerConfig { log_path: Some(path.clone()), ..config.clone() };
        tracing::subscriber::with_default(subscriber, || {
            log.apply(&config).unwrap();
            work();
        });
        assert!(log.sink.ring().unwrap().flush(Duration::from_secs(30)));
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
        assert!(text.contains("log.rs:"), "{text}");
    }

    #[test]
    fn text_from_a_guest_cannot_forge_a_line() {
        for mode in [StartMode::Ballast, StartMode::Firecracker] {
            let text = logged_as(mode, &LoggerConfig::default(), || {
                tracing::error!(name = "x\n2026 ERROR forged", "escape \x1b[2J too");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn firecrackers_lines_name_level_and_place_on_request() {
        for (level, origin) in [(false, false), (true, false), (false, true), (true, true)] {
            let config = LoggerConfig {
                show_level: Some(level),
                show_log_origin: Some(origin),
                ..LoggerConfig::default()
            };
            let line =
                logged_as(StartMode::Firecracker, &config, || tracing::warn!(block = 7, "this"));
            let (head, message) = line.split_once("] ").unwrap();
            assert_eq!(message, "this block=7\n");
            let (time, place) = head.split_once(" [").unwrap();
            let (date, second) = time.split_once('T').unwrap();
            assert_eq!(
                (date.len(), second.len()),
                ("2026-11-28".len(), "18:46:17.108565123".len())
            );
            let thread = std::thread::current();
            let place = place.strip_prefix(&format!("vm:{}", thread.name().unwrap())).unwrap();
            let place = match place.strip_prefix(":WARN") {
                Some(rest) => {
                    assert!(level, "{line}");
                    rest
                }
                None => {
                    assert!(!level, "{line}");
                    place
                }
            };
            assert_eq!(place.contains("log.rs:"), origin, "{line}");
            assert_eq!(place.is_empty(), !origin, "{line}");
        }
    }

    #[test]
    fn a_place_that_repeats_itself_is_throttled_and_counted() {
        let text = logged(&LoggerConfig::default(), || {
            for number in 0..1000 {
                tracing::warn!(number, "caused by a guest");
            }
            tracing::warn!("of another place");
        });
        let lines = text.lines().count();
        assert!((10..100).contains(&lines), "{lines} lines");
        assert!(text.lines().last().unwrap().contains("of another place"), "{text}");
    }

    #[test]
    fn a_fifo_without_a_reader_holds_up_no_caller() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let sink = Sink { ring: Mutex::default(), mode: StartMode::Ballast, id: String::new() };
        sink.redirect(open_lines(&path).unwrap().into());
        let line = [b'x'; 1024];
        for _ in 0..1024 {
            (&sink).write_all(&line).unwrap();
        }
        assert!(sink.ring().unwrap().lost().records > 0);
    }

    #[test]
    fn a_name_with_a_line_break_makes_no_second_line() {
        let text = logged(&LoggerConfig::default(), || {
            tracing::warn!("cannot open {}", "a\n2026 WARN forged");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("a\\n2026 WARN forged"), "{text}");
    }
}
