// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the boot source.

use super::Controller;
use crate::api::boot_source::BootAction;
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn boot_action(&mut self, action: BootAction) -> Result<Reply, Refusal> {
        let BootAction::Set(boot) = action;
        self.configure(|config| config.boot_source = Some(boot))
    }
}
