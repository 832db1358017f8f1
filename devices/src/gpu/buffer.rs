// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A command's buffer: its readable bytes, and the answer in its writable ones.

use std::io::Read;

use super::fence::answer_header;
use super::protocol::CommandHeader;
use super::response::{Fault, Response, encode};
use crate::virtio::{GuestMemoryMmap, Segments};

/// Writes the answer; an error in its place when there is too little room for it.
///
/// Linux leaves no room for a response to a cursor command.
pub(super) fn reply(
    mem: &GuestMemoryMmap,
    buffer: &Segments,
    request: &CommandHeader,
    answer: Result<Response, Fault>,
) -> u32 {
    let room = buffer.writable_len();
    let header = answer_header(request);
    let mut bytes = encode(header, &answer);
    if bytes.len() as u64 > room {
        bytes = encode(header, &Err(Fault::NoRoom));
    }
    if bytes.len() as u64 > room {
        return 0;
    }
    // An answer has a kilobyte or so.
    buffer.write(mem, 0, &bytes) as u32
}

/// The readable bytes of a buffer, one after another.
pub(super) struct SegmentReader<'a> {
    buffer: &'a Segments,
    mem: &'a GuestMemoryMmap,
    at: u64,
}

impl<'a> SegmentReader<'a> {
    /// Those of `buffer`, from the first on.
    pub(super) fn new(buffer: &'a Segments, mem: &'a GuestMemoryMmap) -> Self {
        Self { buffer, mem, at: 0 }
    }
}

impl Read for SegmentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let got = self.buffer.read(self.mem, self.at, out);
        self.at += got as u64;
        Ok(got)
    }
}
