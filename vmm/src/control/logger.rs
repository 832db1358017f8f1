// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the log.

use super::{Controller, failed};
use crate::api::logger::LoggerAction;
use crate::api::{Refusal, Reply};

impl Controller {
    pub(super) fn logger_action(&mut self, action: LoggerAction) -> Result<Reply, Refusal> {
        let LoggerAction::Set(logger) = action;
        self.log.apply(&logger).map_err(failed)?;
        self.config.logger = Some(logger);
        Ok(Reply::Done)
    }
}
