// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the metadata service.

use serde_json::Value;

use super::{Controller, failed};
use crate::api::mmds::{MmdsAction, MmdsReply};
use crate::api::{Refusal, Reply};
use crate::mmds::MetadataError;

impl Controller {
    pub(super) fn mmds_action(&mut self, action: MmdsAction) -> Result<Reply, Refusal> {
        match action {
            MmdsAction::Get => {
                self.check_offered()?;
                Ok(MmdsReply(self.mmds.store().get()).into())
            }
            MmdsAction::Put(document) => {
                self.check_offered()?;
                self.set_metadata(document).map(|()| Reply::Done)
            }
            MmdsAction::Patch(patch) => {
                self.check_offered()?;
                self.mmds.store().patch(&patch).map(|()| Reply::Done).map_err(refusal)
            }
            MmdsAction::Configure(mmds) => self.configure(|config| config.mmds_config = Some(mmds)),
        }
    }

    /// Metadata for a guest that was started without the service would never be seen.
    fn check_offered(&self) -> Result<(), Refusal> {
        let unseen = self.vm.is_some() && self.config.mmds_config.is_none();
        match unseen {
            true => Err(failed(
                "The guest has no metadata service: it was started without /mmds/config.",
            )),
            false => Ok(()),
        }
    }

    /// Sets the metadata.
    ///
    /// # Errors
    ///
    /// It is larger than the limit.
    pub fn set_metadata(&mut self, document: Value) -> Result<(), Refusal> {
        self.mmds.store().put(document).map_err(refusal)
    }
}

fn refusal(error: MetadataError) -> Refusal {
    match error {
        MetadataError::TooLarge { .. } => Refusal::TooLarge(error.to_string()),
        other => failed(other),
    }
}
