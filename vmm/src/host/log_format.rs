// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Firecracker's form of a line of the log: `TIME [ID:THREAD:LEVEL:FILE:LINE] message`, with level
//! and place only if enabled. Its time is local, to the nanosecond.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use mm::units::SaturatingInto;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes lines as Firecracker does.
#[derive(Debug, Clone)]
pub(super) struct FirecrackerFormat {
    /// Name of the machine.
    pub(super) id: String,
    /// Whether lines name their level.
    pub(super) level: bool,
    /// Whether lines name their place in the source.
    pub(super) origin: bool,
}

impl FirecrackerFormat {
    /// The prefix of the message.
    pub(super) fn prefix(&self, out: &mut dyn fmt::Write, place: &Metadata<'_>) -> fmt::Result {
        write_local_time(out)?;
        let thread = std::thread::current();
        write!(out, " [{}:{}", self.id, thread.name().unwrap_or("-"))?;
        if self.level {
            write!(out, ":{}", place.level())?;
        }
        if self.origin {
            write!(out, ":{}:{}", place.file().unwrap_or("?"), place.line().unwrap_or(0))?;
        }
        out.write_str("] ")
    }
}

impl<S, N> FormatEvent<S, N> for FirecrackerFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.prefix(&mut writer, event.metadata())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// `2026-11-28T18:46:17.108565123`, in the host's time zone.
fn write_local_time(out: &mut dyn fmt::Write) -> fmt::Result {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().saturating_i64();
    // SAFETY: a C structure of numbers and a pointer, for which zeroes are valid.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to variables of this function; a failure leaves `time` unchanged.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut time) };
    let (year, month, day) = (time.tm_year + 1900, time.tm_mon + 1, time.tm_mday);
    write!(out, "{year:04}-{month:02}-{day:02}T")?;
    let (hour, minute, second) = (time.tm_hour, time.tm_min, time.tm_sec);
    write!(out, "{hour:02}:{minute:02}:{second:02}.{:09}", since.subsec_nanos())
}
