// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which queue is which. Only queues of accepted features have a number, without gaps
//! (virtio 1.3, 5.5.2; Linux `virtio_find_vqs` skips those without a name).

use super::protocol::feature;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BalloonQueue {
    /// Pages into the balloon.
    Inflate,
    /// Pages out of it.
    Deflate,
    /// Statistics of the guest.
    Stats,
    /// Hints of free pages, on command.
    Hints,
    /// Reports of free pages, as they become free.
    Reports,
    /// Whole blocks in and out.
    Blocks,
    /// Evacuation requests, and replies.
    Evacuations,
}

/// Every role, in the order of their queues, with the feature that it needs.
const ALL: [(BalloonQueue, u64); 7] = [
    (BalloonQueue::Inflate, 0),
    (BalloonQueue::Deflate, 0),
    (BalloonQueue::Stats, feature::STATS_VQ),
    (BalloonQueue::Hints, feature::FREE_PAGE_HINT),
    (BalloonQueue::Reports, feature::REPORTING),
    (BalloonQueue::Blocks, feature::BLOCKS),
    (BalloonQueue::Evacuations, feature::EVACUATE),
];

/// The roles of queues 0, 1, ... once `features` are agreed on.
pub(super) fn of(features: u64) -> impl Iterator<Item = BalloonQueue> {
    ALL.into_iter().filter(move |(_, needs)| features & needs == *needs).map(|(role, _)| role)
}

/// Whether queue `index` can have `role` with some choice of the `offered` features.
pub(super) fn possible(offered: u64, index: u16, role: BalloonQueue) -> bool {
    let index = usize::from(index);
    let Some(at) = ALL.iter().position(|(other, _)| *other == role) else { return false };
    if offered & ALL[at].1 != ALL[at].1 {
        return false;
    }
    // The queues before it: inflate and deflate for certain, the others each or not.
    let (certain, most) =
        ALL[..at].iter().fold((0, 0), |(certain, most), (_, needs)| match needs {
            0 => (certain + 1, most + 1),
            needs => (certain, most + usize::from(offered & needs == *needs)),
        });
    (certain..=most).contains(&index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_close_up_over_features_that_were_not_accepted() {
        let roles = |features| of(features).collect::<Vec<_>>();
        assert_eq!(roles(0), [BalloonQueue::Inflate, BalloonQueue::Deflate]);
        assert_eq!(
            roles(feature::REPORTING | feature::DEFLATE_ON_OOM),
            [BalloonQueue::Inflate, BalloonQueue::Deflate, BalloonQueue::Reports]
        );
        assert_eq!(
            roles(feature::STATS_VQ | feature::BLOCKS | feature::EVACUATE),
            [
                BalloonQueue::Inflate,
                BalloonQueue::Deflate,
                BalloonQueue::Stats,
                BalloonQueue::Blocks,
                BalloonQueue::Evacuations
            ]
        );
        assert_eq!(roles(u64::MAX).len(), 7);
    }

    #[test]
    fn possible_numbers_are_those_of_some_choice() {
        let all = [
            feature::STATS_VQ,
            feature::FREE_PAGE_HINT,
            feature::REPORTING,
            feature::BLOCKS,
            feature::EVACUATE,
        ];
        let subset = |bits: usize| {
            (0..all.len()).filter(|i| bits & (1 << i) != 0).fold(0, |set, i| set | all[i])
        };
        for offered in (0..1 << all.len()).map(subset) {
            for role in ALL.map(|(role, _)| role) {
                for index in 0..8u16 {
                    let some_choice = (0..1 << all.len()).map(subset).any(|accepted| {
                        let accepted = accepted & offered;
                        of(accepted).nth(usize::from(index)) == Some(role)
                    });
                    assert_eq!(possible(offered, index, role), some_choice, "{role:?} {index}");
                }
            }
        }
    }
}
