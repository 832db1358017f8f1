// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Evacuation of blocks by the guest.

use std::collections::BTreeMap;
use std::time::Duration;

use devices::balloon::{BlockResult, EvacuationReport};
use mm::units::{BLOCK_SIZE, BlockId, GuestRange, SaturatingInto};

use super::{Controller, failed};
use crate::api::channel::ReplySender;
use crate::api::evacuation::{
    BlockOutcome, Evacuate, Evacuation, EvacuationAction, EvacuationReply,
};
use crate::api::{Refusal, Reply};

/// Timeout for the guest.
const PATIENCE: Duration = Duration::from_secs(30);

impl Controller {
    /// Asks the guest to evacuate blocks; the reply is sent when it has answered, or has not in
    /// time.
    pub(super) fn evacuation_action(&mut self, action: EvacuationAction, answer: ReplySender) {
        let EvacuationAction::Evacuate(wanted) = action;
        let blocks = match self.blocks_of(wanted) {
            Ok(blocks) => blocks,
            Err(refusal) => return answer.send(Err(refusal)),
        };
        let mut balloon = match self.balloon() {
            Ok(balloon) => balloon,
            Err(refusal) => return answer.send(Err(refusal)),
        };
        if !balloon.can_evacuate() {
            let why = "The guest's balloon driver does not support evacuation.";
            return answer.send(Err(Refusal::Failed(why.into())));
        }
        let asked = blocks.clone();
        let done = Box::new(move |report: EvacuationReport| answer.send(reply(&asked, &report)));
        // Refused only without the feature: then the answer is dropped, which answers as well.
        let taken = balloon.evacuate(blocks, true, PATIENCE, done);
        if let Err(error) = taken {
            tracing::warn!(%error, "evacuation refused");
        }
    }

    /// The requested blocks, if they are aligned and inside RAM.
    fn blocks_of(&self, wanted: Evacuate) -> Result<Vec<BlockId>, Refusal> {
        let vm = self.vm()?;
        if !wanted.start.is_multiple_of(BLOCK_SIZE) || wanted.blocks == 0 {
            return Err(failed("start must be a multiple of 2 MiB, and blocks at least 1"));
        }
        let end = vm.ram().layout().ram().iter().map(GuestRange::end).max();
        let end = end.map_or(0, |end| end.0 / mm::units::PAGES_PER_BLOCK);
        let first = wanted.start / BLOCK_SIZE;
        match first.checked_add(wanted.blocks.into()) {
            Some(after) if after <= end => Ok((first..after).map(BlockId).collect()),
            _ => Err(failed("the range exceeds guest memory")),
        }
    }
}

fn reply(asked: &[BlockId], report: &EvacuationReport) -> Result<Reply, Refusal> {
    if !report.outcomes.is_empty() && report.count(BlockResult::Unanswered) == report.outcomes.len()
    {
        return Err(failed("the guest did not answer"));
    }
    let count = |outcome| report.count(outcome).saturating_u32();
    let known: BTreeMap<BlockId, BlockResult> = report.outcomes.iter().copied().collect();
    let per_block = asked.iter().map(|block| match known.get(block) {
        Some(BlockResult::Evacuated) => BlockOutcome::Evacuated,
        Some(BlockResult::Busy) => BlockOutcome::Busy,
        Some(BlockResult::Unanswered) => BlockOutcome::Unanswered,
        Some(BlockResult::NotRam) | None => BlockOutcome::NotMemory,
    });
    Ok(EvacuationReply(Evacuation {
        evacuated: count(BlockResult::Evacuated),
        busy: count(BlockResult::Busy),
        migrated_lru: report.migrated.lru,
        migrated_balloon: report.migrated.balloon,
        migrated_zsmalloc: report.migrated.zsmalloc,
        migrated_gpu: report.migrated.gpu,
        per_block: per_block.collect(),
    })
    .into())
}

#[cfg(test)]
mod tests {
    use devices::balloon::Migrated;

    use super::*;

    fn report(outcomes: &[(u64, BlockResult)]) -> EvacuationReport {
        let outcomes = outcomes.iter().map(|(block, outcome)| (BlockId(*block), *outcome));
        let migrated = Migrated { lru: 5, ..Migrated::default() };
        EvacuationReport { outcomes: outcomes.collect(), migrated }
    }

    #[test]
    fn every_block_is_answered_in_order() {
        let asked = [BlockId(3), BlockId(4), BlockId(5), BlockId(6)];
        let report = report(&[
            (3, BlockResult::Busy),
            (4, BlockResult::Evacuated),
            (6, BlockResult::Unanswered),
        ]);
        let Ok(Reply::Evacuation(EvacuationReply(evacuation))) = reply(&asked, &report) else {
            panic!("an evacuation");
        };
        assert_eq!((evacuation.evacuated, evacuation.busy, evacuation.migrated_lru), (1, 1, 5));
        let expected = [
            BlockOutcome::Busy,
            BlockOutcome::Evacuated,
            BlockOutcome::NotMemory,
            BlockOutcome::Unanswered,
        ];
        assert_eq!(evacuation.per_block, expected);
    }

    #[test]
    fn fails_when_the_guest_answers_for_no_block() {
        let report = report(&[(3, BlockResult::Unanswered)]);
        assert!(reply(&[BlockId(3)], &report).is_err());
    }
}
