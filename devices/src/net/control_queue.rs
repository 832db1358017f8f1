// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue: how many queue pairs the driver uses (virtio 1.3, 5.1.6.5).

use mm::units::SaturatingInto;

use super::protocol::control::{ERR, MQ, OK, VQ_PAIRS_SET};
use crate::virtio::{ChainMemory, Deadline, DeviceQueue, Progress, QueueError};

/// Answers commands; `set_pairs` is called with a new number of pairs, and charges what it does. The
/// answer is whether it took the number.
pub(super) fn run(
    queue: &mut DeviceQueue,
    deadline: &mut Deadline,
    mut set_pairs: impl FnMut(u16, &mut Deadline) -> bool,
) -> Result<Progress, QueueError> {
    let mut buffer = ChainMemory::default();
    loop {
        if deadline.passed() {
            queue.signal();
            return Ok(Progress::More);
        }
        let Some(chain) = queue.pop()? else { break };
        deadline.charge(Deadline::COMMAND);
        let head = chain.head_index();
        let written = match buffer.refill(chain, queue.size()) {
            Ok(()) => {
                let mut command = [0; 4];
                let complete = buffer.readable.read(0, &mut command) == command.len();
                let answer = match command {
                    [MQ, VQ_PAIRS_SET, low, high]
                        if complete && set_pairs(u16::from_le_bytes([low, high]), deadline) =>
                    {
                        OK
                    }
                    _ => ERR,
                };
                buffer.writable.write(0, &[answer])
            }
            Err(_) => 0,
        };
        queue.push(head, written.saturating_u32())?;
    }
    queue.finish();
    Ok(Progress::Done)
}
