// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on vCPUs and memory size.

use super::Controller;
use crate::api::machine_config::{MachineAction, MachineReply};
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn machine_action(&mut self, action: MachineAction) -> Result<Reply, Refusal> {
        match action {
            MachineAction::Get => Ok(MachineReply(self.config.machine_config.clone()).into()),
            MachineAction::Set(machine) => self.configure(|config| config.machine_config = machine),
            MachineAction::Update(update) => {
                update.validate().map_err(Refusal::Invalid)?;
                self.configure(|config| config.machine_config.apply(update))
            }
        }
    }
}
