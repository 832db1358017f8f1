// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kind of a block for display: one of a few kinds, each with a colour and a name.

use mm::units::PAGES_PER_BLOCK;

use super::runs::BlockRun;

/// Number of small pages from which a block counts as dense: nine tenths.
const DENSE_FROM: u16 = (PAGES_PER_BLOCK * 9 / 10) as u16;

/// The kind of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// One huge page.
    Huge,
    /// Nearly all there, in small pages.
    Dense,
    /// Partly there, in small pages.
    Sparse,
    /// Partly in the balloon.
    Holed,
    /// Entirely in the balloon, and free on the host.
    Ballooned,
    /// In the balloon but still present.
    Wasted,
    /// Reported free, and free on the host.
    Reported,
    /// Never accessed, or discarded without a report.
    Absent,
}

impl BlockKind {
    /// All kinds, in the order of a legend.
    pub const ALL: [Self; 8] = [
        Self::Huge,
        Self::Dense,
        Self::Sparse,
        Self::Holed,
        Self::Ballooned,
        Self::Wasted,
        Self::Reported,
        Self::Absent,
    ];

    /// The kind of a block.
    pub fn of(block: &BlockRun) -> Self {
        let whole = PAGES_PER_BLOCK as u16;
        match block {
            b if b.wasted > 0 && b.wasted == b.present => Self::Wasted,
            b if b.ballooned >= whole => Self::Ballooned,
            b if b.huge => Self::Huge,
            b if b.ballooned > 0 => Self::Holed,
            b if b.present >= DENSE_FROM => Self::Dense,
            b if b.present > 0 => Self::Sparse,
            b if b.reported > 0 => Self::Reported,
            _ => Self::Absent,
        }
    }

    /// Its RGB colour. The palette is readable with colour blindness.
    pub const fn colour(self) -> [u8; 3] {
        match self {
            Self::Huge => [0x00, 0x72, 0xb2],
            Self::Dense => [0x56, 0xb4, 0xe9],
            Self::Sparse => [0xe6, 0x9f, 0x00],
            Self::Holed => [0xd5, 0x5e, 0x00],
            Self::Ballooned => [0x00, 0x9e, 0x73],
            Self::Wasted => [0xcc, 0x79, 0xa7],
            Self::Reported => [0x9a, 0xd9, 0xc4],
            Self::Absent => [0xd9, 0xd9, 0xd9],
        }
    }

    /// Its name in a legend.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Huge => "huge page",
            Self::Dense => "small pages, dense",
            Self::Sparse => "small pages, sparse",
            Self::Holed => "partly ballooned",
            Self::Ballooned => "ballooned",
            Self::Wasted => "wasted",
            Self::Reported => "reported free",
            Self::Absent => "absent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_blocks() {
        let block = |present, ballooned, wasted, huge| BlockRun {
            present,
            ballooned,
            wasted,
            huge,
            blocks: 1,
            ..BlockRun::default()
        };
        let kind = |b| BlockKind::of(&b);
        assert_eq!(kind(block(512, 0, 0, true)), BlockKind::Huge);
        assert_eq!(kind(block(512, 0, 0, false)), BlockKind::Dense);
        assert_eq!(kind(block(100, 0, 0, false)), BlockKind::Sparse);
        assert_eq!(kind(block(100, 300, 0, false)), BlockKind::Holed);
        assert_eq!(kind(block(0, 512, 0, false)), BlockKind::Ballooned);
        assert_eq!(kind(block(512, 512, 512, true)), BlockKind::Wasted);
        assert_eq!(kind(block(0, 0, 0, false)), BlockKind::Absent);
        assert_eq!(kind(BlockRun { reported: 512, ..block(0, 0, 0, false) }), BlockKind::Reported);
    }
}
