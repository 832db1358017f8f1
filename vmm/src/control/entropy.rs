// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the entropy device.

use super::Controller;
use crate::api::entropy::EntropyAction;
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn entropy_action(&mut self, action: EntropyAction) -> Result<Reply, Refusal> {
        let EntropyAction::Set(entropy) = action;
        self.configure(|config| config.entropy = Some(entropy))
    }
}
