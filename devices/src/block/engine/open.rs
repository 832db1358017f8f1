// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which engine an image gets.

use std::sync::Arc;

use super::calls::Calls;
use super::qcow2::Qcow2Engine;
use super::ring::Ring;
use super::{Engine, RingConfig};
use crate::block::IoEngine;
use crate::block::image::{Contents, Image};

/// The engine for `image`.
pub(in crate::block) fn open(
    image: Image,
    wanted: IoEngine,
    config: &RingConfig,
) -> Box<dyn Engine> {
    let file = match image.contents {
        Contents::Raw(file) => file,
        Contents::Qcow2(access) => return Box::new(Qcow2Engine::new(*access)),
    };
    if wanted == IoEngine::Async {
        match Ring::new(Arc::clone(&file), config) {
            Ok(ring) => return Box::new(ring),
            Err(error) => {
                tracing::warn!(%error, "io_uring is not available: using system calls for disk I/O");
            }
        }
    }
    Box::new(Calls::new(file))
}
