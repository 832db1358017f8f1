// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on guest memory as a whole.

use super::{Controller, failed};
use crate::api::channel::ReplySender;
use crate::api::memory::{MemoryAction, MemoryReply, MemoryStatus};

impl Controller {
    pub(super) fn memory_action(&mut self, action: MemoryAction, reply: ReplySender) {
        match action {
            MemoryAction::Get => self.memory_status(reply),
            MemoryAction::Set(memory) => {
                reply.send(self.configure(|config| config.memory = memory));
            }
        }
    }

    /// Replies from the thread that walks the page table.
    fn memory_status(&mut self, reply: ReplySender) {
        let (backing, cma_bytes) = (self.config.backing(), self.config.memory.cma_mib << 20);
        self.walk(reply, move |guest| {
            let residency = guest.ram().residency().map_err(failed)?;
            Ok(MemoryReply(MemoryStatus {
                backing,
                cma_bytes,
                total_bytes: guest.ram().pages().bytes().0,
                resident_bytes: residency.resident.0,
                huge_bytes: residency.huge.map(|huge| huge.0),
                ballooned_bytes: guest.ballooned().bytes().0,
            })
            .into())
        });
    }
}
