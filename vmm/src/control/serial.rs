// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the serial port.

use super::Controller;
use crate::api::serial::SerialAction;
use crate::api::{Refusal, Reply};
use crate::config::ConsoleConfig;

impl Controller {
    pub(super) fn serial_action(&mut self, action: SerialAction) -> Result<Reply, Refusal> {
        let SerialAction::Set(serial) = action;
        self.configure(|config| {
            config.console = match serial.serial_out_path {
                Some(path) => ConsoleConfig::File(path),
                None => ConsoleConfig::Tty,
            };
        })
    }
}
