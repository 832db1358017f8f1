// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket device: its queues, and one dispatch.

use std::any::Any;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::FromBytes;

use super::buffers::Buffers;
use super::credit::BUFFER;
use super::handle::VsockCounters;
use super::muxer::Muxer;
use super::protocol::{DEVICE_TYPE, PacketHeader};
use super::{VsockConfig, VsockHandle};
use crate::virtio::{
    Activation, ChainMemory, Deadline, DeviceFailure, DeviceQueue, EventSource, Progress,
    QueueError, VirtioDevice, read_config_slice,
};

const NAME: &str = "vsock";
const QUEUE_SIZE: u16 = 256;
/// Queues: to the guest, from the guest, events (5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The socket device.
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
    active: Option<ActiveVsock>,
    /// One packet of the guest's; kept for its memory.
    packet: ChainMemory,
    /// Connections of before a reset.
    remains: Option<Box<dyn Any + Send>>,
    counters: Arc<VsockCounters>,
}

/// State between activation and reset. The event queue is never used, as the guest is never
/// migrated with open connections.
struct ActiveVsock {
    receive: Buffers,
    transmit: DeviceQueue,
    /// Packets from the guest wait until replies are sent.
    held_back: bool,
}

impl Vsock {
    /// A device as `config` says.
    ///
    /// # Errors
    ///
    /// The host cannot watch the listening socket.
    pub fn new(config: VsockConfig) -> std::io::Result<Self> {
        let counters = Arc::new(VsockCounters::default());
        Ok(Self {
            guest_cid: config.guest_cid,
            muxer: Muxer::new(config, Arc::clone(&counters))?,
            active: None,
            packet: ChainMemory::default(),
            remains: None,
            counters,
        })
    }

    /// State shared with other threads.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle { counters: Arc::clone(&self.counters) }
    }

    /// Event sources of its thread in addition to the queues.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn sources(&self) -> std::io::Result<Vec<EventSource>> {
        Ok(vec![EventSource::readable(self.muxer.events().try_clone_to_owned()?, RECEIVE)])
    }

    /// Connections, watched sockets, and packets that wait for the guest.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn held(&self) -> (usize, usize, usize) {
        self.muxer.held()
    }

    /// Bytes held for programs of the host.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.muxer.buffered()
    }

    fn round(
        &mut self,
        active: &mut ActiveVsock,
        queue: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        let mut progress = Progress::Done;
        if queue == RECEIVE {
            VsockCounters::add(&self.counters.rx_queue_event_count, 1);
            progress = self.muxer.poll_host(deadline);
        }
        if queue == TRANSMIT || active.held_back {
            VsockCounters::add(&self.counters.tx_queue_event_count, 1);
            progress = progress.or(self.transmit(active, deadline)?);
        }
        progress = progress.or(self.receive(&mut active.receive, deadline)?);
        if active.held_back && self.muxer.can_take() {
            // Replies were sent: there is room for more.
            active.transmit.kick_self();
        }
        active.receive.signal();
        active.transmit.signal();
        Ok(progress)
    }

    /// Takes the guest's packets.
    fn transmit(
        &mut self,
        active: &mut ActiveVsock,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        let queue = &mut active.transmit;
        loop {
            active.held_back = !self.muxer.can_take();
            if active.held_back {
                return Ok(Progress::Done);
            }
            if deadline.passed() {
                return Ok(Progress::More);
            }
            let Some(chain) = queue.pop()? else { break };
            deadline.charge(Deadline::COMMAND);
            let head = chain.head_index();
            let mut raw = [0; PacketHeader::LEN];
            let whole = self.packet.refill(chain, queue.size()).is_ok()
                && self.packet.readable.read(0, &mut raw) == raw.len();
            match PacketHeader::read_from_bytes(&raw) {
                Ok(header) if whole => {
                    VsockCounters::add(&self.counters.tx_packets_count, 1);
                    // The length may be false; at most the credit is copied.
                    deadline.charge(header.len.get().min(BUFFER).into());
                    self.muxer.take(&self.packet.readable, &header);
                }
                _ => VsockCounters::add(&self.counters.tx_queue_event_fails, 1),
            }
            queue.push(head, 0)?;
        }
        queue.rearm();
        Ok(Progress::Done)
    }

    /// Sends packets to the guest while there are both packets and buffers.
    fn receive(
        &mut self,
        buffers: &mut Buffers,
        deadline: &mut Deadline,
    ) -> Result<Progress, QueueError> {
        while self.muxer.has_packets() {
            if deadline.passed() {
                return Ok(Progress::More);
            }
            deadline.charge(Deadline::COMMAND);
            let taken = buffers.take()?;
            VsockCounters::add(&self.counters.rx_queue_event_fails, taken.unusable);
            if !taken.any {
                return Ok(Progress::Done);
            }
            deadline.charge(self.muxer.give(buffers)? as u64);
        }
        Ok(Progress::Done)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn publishes_config(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_slice(&self.guest_cid.to_le_bytes(), offset, data);
    }

    /// No field is the driver's to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        VsockCounters::add(&self.counters.cfg_fails, 1);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let mut queues = activation.queues.into_iter();
        match (queues.next(), queues.next()) {
            (Some(receive), Some(transmit)) if receive.ready() && transmit.ready() => {
                let receive = Buffers::new(receive);
                self.active = Some(ActiveVsock { receive, transmit, held_back: false });
                Ok(())
            }
            _ => {
                VsockCounters::add(&self.counters.activate_fails, 1);
                Err(DeviceFailure::new(NAME, "its queues were not set up"))
            }
        }
    }

    fn reset(&mut self) {
        self.active = None;
        self.remains = Some(self.muxer.reset());
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.remains.take()
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.round(&mut active, queue, deadline);
        self.active = Some(active);
        result.map_err(|error| DeviceFailure::new(NAME, error))
    }
}
