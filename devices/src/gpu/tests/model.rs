// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Transfers and migrations against a model.

use proptest::prelude::*;

use super::{FIRST_PAGE, XRGB, image, pattern, picture, setup};
use crate::display::{Rect, Size};
use crate::gpu::mock::{BUFFERS, Driver, Setup};
use crate::gpu::response::{error, ok};
use crate::virtio::Deadline;

/// Operations of a driver on one image, for the model below.
#[derive(Debug, Clone)]
enum Step {
    Draw { at: usize, seed: u32 },
    Transfer { rect: Rect, offset: u64 },
    Migrate { page: u64, slot: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rect = (0..40u32, 0..40u32, 0..40u32, 0..40u32);
    let step = prop_oneof![
        (0..4096usize, any::<u32>()).prop_map(|(at, seed)| Step::Draw { at, seed }),
        (rect, 0..5000u64).prop_map(|((x, y, width, height), offset)| {
            Step::Transfer { rect: Rect { x, y, width, height }, offset }
        }),
        (0..5u64, 0..8u64).prop_map(|(page, slot)| Step::Migrate { page, slot }),
    ];
    prop::collection::vec(step, 1..24)
}

proptest! {
    /// Against a model of two byte arrays, backing and image, for any order of drawing, transfers
    /// and migrations; a command that should fail fails, and changes neither.
    #[test]
    fn transfers_and_migrations_agree_with_two_arrays(steps in steps(), cut: bool) {
        // In rounds of so little work that every command is cut many times, or in one.
        let deadline = if cut { || Deadline::of_work(1) } else { Deadline::never };
        let mut d = Driver::new(Setup { deadline, ..setup() });
        let size = Size::new(36, 33); // a stride that is no power of two, a last page half used
        image(&mut d, XRGB, size);
        let len = size.bytes() as usize;
        let mut backing = vec![0u8; 8192];
        let mut image = vec![0u8; len];
        let mut pages = [FIRST_PAGE, FIRST_PAGE + 1];
        d.write(BUFFERS, &backing);
        for step in steps {
            match step {
                Step::Draw { at, seed } => {
                    let bytes = pattern(seed, 1000);
                    backing[at..at + 1000].copy_from_slice(&bytes);
                    for (i, byte) in bytes.iter().enumerate() {
                        d.write(pages[(at + i) / 4096] * 4096 + (at + i) as u64 % 4096, &[*byte]);
                    }
                }
                Step::Transfer { rect, offset } => {
                    let rows = rect.height as usize;
                    let end = offset as usize + rows.saturating_sub(1) * 144 + 4 * rect.width as usize;
                    let good = rect.within(size).is_some() && end <= 8192;
                    let answer = d.transfer(1, rect, offset);
                    prop_assert_eq!(answer, if good { ok::NODATA } else { error::PARAMETER });
                    for row in (0..rows).filter(|_| good) {
                        let from = offset as usize + row * 144;
                        let to = (rect.y as usize + row) * 144 + 4 * rect.x as usize;
                        let bytes = 4 * rect.width as usize;
                        image[to..to + bytes].copy_from_slice(&backing[from..from + bytes]);
                    }
                }
                Step::Migrate { page, slot } => {
                    let to = FIRST_PAGE + 20 + slot;
                    if pages.contains(&to) {
                        continue;
                    }
                    let answer = d.migrate(1, &[(page * 4096, to * 4096)]);
                    prop_assert_eq!(answer, if page < 2 { ok::NODATA } else { error::PARAMETER });
                    if page < 2 {
                        let old = std::mem::replace(&mut pages[page as usize], to);
                        d.write(old * 4096, &[0xee; 4096]);
                    }
                }
            }
            d.gpu().validate();
        }
        for (page, bytes) in pages.iter().zip(backing.chunks(4096)) {
            prop_assert_eq!(&d.read(page * 4096, 4096), bytes);
        }
        d.set_scanout(0, 1, Rect::whole(size));
        prop_assert_eq!(picture(&mut d), image);
    }
}
