// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A root for log layers that keeps no spans. The monitor logs events only, and the registry of
//! `tracing-subscriber` takes 32 KiB and more for spans, of each process on a host.

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::registry::{Extensions, ExtensionsMut, LookupSpan, SpanData};

/// The number of all spans, should a library make one.
const ANY: u64 = 1;

/// The root: enables everything, and leaves it to the layers.
#[derive(Debug, Default)]
pub(super) struct Spanless;

impl Subscriber for Spanless {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(ANY)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Data of a span, which no span has.
pub(super) enum NoSpan {}

impl<'a> LookupSpan<'a> for Spanless {
    type Data = NoSpan;

    fn span_data(&'a self, _: &Id) -> Option<NoSpan> {
        None
    }
}

impl<'a> SpanData<'a> for NoSpan {
    fn id(&self) -> Id {
        match *self {}
    }

    fn metadata(&self) -> &'static Metadata<'static> {
        match *self {}
    }

    fn parent(&self) -> Option<&Id> {
        match *self {}
    }

    fn extensions(&self) -> Extensions<'_> {
        match *self {}
    }

    fn extensions_mut(&self) -> ExtensionsMut<'_> {
        match *self {}
    }
}
