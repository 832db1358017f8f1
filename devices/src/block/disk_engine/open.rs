// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which engine an image gets.

use std::sync::Arc;

use super::calls::CallsEngine;
use super::qcow2::Qcow2Engine;
use super::uring::UringEngine;
use super::{DiskEngine, RingConfig};
use crate::block::IoEngine;
use crate::block::image::{Contents, DiskImage};

/// The engine for `image`.
pub(in crate::block) fn open(
    image: DiskImage,
    wanted: IoEngine,
    config: &RingConfig,
) -> Box<dyn DiskEngine> {
    let file = match image.contents {
        Contents::Raw(file) => file,
        Contents::Qcow2(access) => return Box::new(Qcow2Engine::new(*access)),
    };
    if wanted == IoEngine::Async {
        match UringEngine::new(Arc::clone(&file), config) {
            Ok(ring) => return Box::new(ring),
            Err(error) => {
                tracing::warn!(%error, "io_uring is not available: using system calls for disk I/O");
            }
        }
    }
    Box::new(CallsEngine::new(file))
}
