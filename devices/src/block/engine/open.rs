// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which engine an image gets.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::Engine;
use super::calls::Calls;
use super::qcow2::Qcow2Engine;
use super::ring::Ring;
use crate::block::IoEngine;
use crate::block::image::{Contents, Image};

/// The engine for `image`; completions write to the event `wake`.
pub(in crate::block) fn open(
    image: Image,
    wanted: IoEngine,
    wake: RawFd,
    slots: u16,
) -> Box<dyn Engine> {
    let file = match image.contents {
        Contents::Raw(file) => file,
        Contents::Qcow2(access) => return Box::new(Qcow2Engine::new(*access)),
    };
    if wanted == IoEngine::Async {
        match Ring::new(Arc::clone(&file), wake, slots) {
            Ok(ring) => return Box::new(ring),
            Err(error) => {
                tracing::warn!(%error, "io_uring is not available: using system calls for disk I/O");
            }
        }
    }
    Box::new(Calls::new(file))
}
