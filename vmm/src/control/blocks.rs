// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the block map.

use super::{Controller, failed};
use crate::api::blocks::{BlocksAction, BlocksReply};
use crate::api::{Refusal, Reply};
use crate::block_view::BlockRuns;

impl Controller {
    pub(super) fn blocks_action(&mut self, action: BlocksAction) -> Result<Reply, Refusal> {
        let BlocksAction::Get = action;
        let map = self.compactor()?.map().map_err(failed)?;
        Ok(BlocksReply(BlockRuns::of(&map)).into())
    }
}
