// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the socket device.

use super::Controller;
use crate::api::vsock::VsockAction;
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn vsock_action(&mut self, action: VsockAction) -> Result<Reply, Refusal> {
        let VsockAction::Set(vsock) = action;
        self.configure(|config| config.vsock = Some(vsock))
    }
}
