// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the block map.

use super::Controller;
use crate::api::blocks::{BlocksAction, BlocksReply};
use crate::api::channel::ReplySender;
use crate::block_view::BlockRuns;

impl Controller {
    /// Replies from the thread that walks the page table.
    pub(super) fn blocks_action(&mut self, action: BlocksAction, reply: ReplySender) {
        let BlocksAction::Get = action;
        self.with_map(reply, |map| Ok(BlocksReply(BlockRuns::of(map)).into()));
    }
}
