// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions on the host's side of guest memory: passes, the block map, the CMA region.

use std::sync::{Arc, Mutex};

use mm::blocks::map::{BlockFlags, Totals};
use mm::units::Pages;
use tracing::warn;

use super::{Controller, failed};
use crate::api::channel::Answer;
use crate::api::compaction::{CmaStatus, CmaUse, Compact, CompactReport, CompactStatus};
use crate::api::{Refusal, Reply};
use crate::block_view::BlockRuns;
use crate::compactor::{Compactor, LiveGuest};

impl Controller {
    /// Has a pass run; `answer` comes at its end or, if nobody waits, at once.
    pub(super) fn compact(&mut self, wanted: &Compact, answer: Answer) {
        let job = match self.vm() {
            Ok(vm) => wanted.to_job(vm.ram().layout()).map_err(failed),
            Err(refusal) => Err(refusal),
        };
        let prepared = job.and_then(|job| Ok((job, self.compactor()?)));
        let (job, compactor) = match prepared {
            Ok(ready) => ready,
            Err(refusal) => return answer.give(Err(refusal)),
        };
        // Whoever comes first: the end of the pass, or the refusal to run it.
        let answer = Arc::new(Mutex::new(Some(answer)));
        let reply = {
            let answer = Arc::clone(&answer);
            move |reply| {
                if let Some(answer) = super::lock(&answer).take() {
                    answer.give(reply);
                }
            }
        };
        let at_the_end = reply.clone();
        let waits = wanted.wait;
        let when_done = Box::new(move |result: Result<_, _>| {
            if waits {
                let report = result.map(|report| Box::new(CompactReport::from(&report)));
                at_the_end(report.map(Reply::Compaction).map_err(failed));
            }
        });
        match compactor.submit(job, when_done) {
            Err(refused) => reply(Err(failed(refused))),
            Ok(()) if !waits => reply(Ok(Reply::Done)),
            Ok(()) => {}
        }
    }

    /// How far the present pass is.
    pub(super) fn compaction_status(&mut self) -> Result<Reply, Refusal> {
        Ok(Reply::CompactStatus(Box::new(CompactStatus::of(self.compactor()?))))
    }

    /// Ends the present pass.
    pub(super) fn cancel_compaction(&mut self) -> Result<Reply, Refusal> {
        self.compactor()?.cancel();
        Ok(Reply::Done)
    }

    /// What every block is made of.
    pub(super) fn blocks(&mut self) -> Result<Reply, Refusal> {
        let map = self.compactor()?.map().map_err(failed)?;
        Ok(Reply::Blocks(BlockRuns::of(&map)))
    }

    /// The CMA region: what the host sees of it, and what the guest says.
    pub(super) fn cma(&mut self) -> Result<Reply, Refusal> {
        let vm = self.vm()?;
        let layout = vm.ram().layout();
        let Some(region) = layout.cma() else { return Err(Refusal::NoDevice("CMA")) };
        let told = vm.balloon().map(|balloon| *super::lock(balloon).statistics());
        let guest = told.and_then(|told| {
            CmaUse::of(&told, layout.ram_pages().bytes()).unwrap_or_else(|error| {
                warn!(%error, "what the guest says of its contiguous memory is left out");
                None
            })
        });
        let map = self.compactor()?.map().map_err(failed)?;
        let mut totals = Totals::default();
        for (_, block) in map.iter().filter(|(_, b)| b.flags.contains(BlockFlags::CMA)) {
            let bytes = |pages: u16| Pages(u64::from(pages)).bytes();
            let huge = if block.flags.contains(BlockFlags::HUGE) { block.present } else { 0 };
            totals.resident = totals.resident.saturating_add(bytes(block.present));
            totals.huge = totals.huge.saturating_add(bytes(huge));
            totals.ballooned = totals.ballooned.saturating_add(bytes(block.ballooned));
            totals.gpu = totals.gpu.saturating_add(bytes(block.gpu));
            totals.wasted = totals.wasted.saturating_add(bytes(block.wasted));
        }
        Ok(Reply::Cma(CmaStatus {
            start: region.address().0,
            size_bytes: region.bytes().0,
            totals: (&totals).into(),
            guest,
        }))
    }

    /// The compactor, whose thread starts when it is first asked for anything.
    pub(super) fn compactor(&mut self) -> Result<&Compactor, Refusal> {
        if self.compactor.is_none() {
            let vm = self.vm()?;
            let gpu = vm.screens().map(|screens| screens.gpu.clone());
            let guest = LiveGuest::new(vm.ram().clone(), vm.balloon().cloned(), gpu);
            let background = self.config.memory.compaction.map(Into::into);
            self.compactor = Some(Compactor::start(guest, background).map_err(failed)?);
        }
        self.compactor.as_ref().ok_or(Refusal::BeforeStart)
    }
}
