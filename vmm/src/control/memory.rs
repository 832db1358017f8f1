// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on guest memory as a whole.

use mm::units::Pages;

use super::{Controller, failed, lock};
use crate::api::memory::{MemoryAction, MemoryReply, MemoryStatus};
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn memory_action(&mut self, action: MemoryAction) -> Result<Reply, Refusal> {
        match action {
            MemoryAction::Get => self.memory_status(),
            MemoryAction::Set(memory) => self.configure(|config| config.memory = memory),
        }
    }

    fn memory_status(&self) -> Result<Reply, Refusal> {
        let vm = self.vm()?;
        let ballooned = vm.balloon().map_or(Pages(0), |balloon| lock(balloon).ballooned());
        let residency = vm.ram().residency().map_err(failed)?;
        Ok(MemoryReply(MemoryStatus {
            backing: self.config.backing(),
            cma_bytes: self.config.memory.cma_mib << 20,
            total_bytes: vm.ram().pages().bytes().0,
            resident_bytes: residency.resident.0,
            huge_bytes: residency.huge.map(|huge| huge.0),
            ballooned_bytes: ballooned.bytes().0,
        })
        .into())
    }
}
