// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device: pairs of queues over links of the host, and one dispatch.

use std::any::Any;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use mm::units::SaturatingInto;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::handle::{NetCounters, NetShared};
use super::link::{Link, use_pairs};
use super::pair::Pair;
use super::protocol::{DEVICE_TYPE, LINK_UP, NetConfigSpace, feature};
use super::receiver::RoundEnd;
use super::responder::Responder;
use super::vhost_net::{RunningRings, VhostNet};
use super::{MAX_PAIRS, NetConfig, NetHandle, control_queue};
use crate::timer::Timer;
use crate::virtio::{
    Activation, Deadline, DeviceFailure, DeviceQueue, EventSource, Interrupt, Progress,
    RateLimiter, Readiness, VirtioDevice, read_config_slice,
};

const NAME: &str = "net";
/// Entries of every queue.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;

/// The network device.
pub struct Net {
    // What the transport sees.
    features: u64,
    queue_sizes: Vec<u16>,
    config: NetConfigSpace,
    active: Option<ActiveNet>,
    /// Buffers of before a reset.
    remains: Option<Box<dyn Any + Send>>,

    // The host's side.
    links: Vec<Link>,
    /// Moves the frames in place of this device, if there is one.
    vhost: Option<VhostNet>,
    responder: Option<Box<dyn Responder>>,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    timer: Timer,
    shared: Arc<NetShared>,
}

/// State between activation and reset.
struct ActiveNet {
    /// Pairs of queues that the driver can use.
    count: usize,
    /// Those that are processed here: all or none.
    pairs: Vec<Pair>,
    /// Those that the host's kernel processes.
    offloaded: Option<RunningRings>,
    control: Option<DeviceQueue>,
    interrupt: Arc<dyn Interrupt>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NetQueue {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    /// An interface as `config` says.
    ///
    /// # Errors
    ///
    /// The host cannot create an event or timer.
    pub fn new(config: NetConfig) -> std::io::Result<Self> {
        let NetConfig { links, mac, mtu, rx_limiter, tx_limiter, responder, vhost } = config;
        let pairs = links.len().saturating_u16().clamp(1, MAX_PAIRS);
        let offer = |wanted: bool, bits: u64| if wanted { bits } else { 0 };
        let features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | links.first().map_or(0, Link::features)
            | feature::MRG_RXBUF
            | offer(mac.is_some(), feature::MAC)
            | offer(mtu.is_some(), feature::MTU)
            | offer(pairs > 1, feature::CTRL_VQ | feature::MQ);
        let features = vhost.as_ref().map_or(features, |vhost| vhost.limit_features(features));
        let mut queue_sizes = vec![QUEUE_SIZE; usize::from(pairs) * 2];
        if pairs > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        Ok(Self {
            features,
            queue_sizes,
            config: NetConfigSpace {
                mac: mac.unwrap_or_default(),
                status: if features & feature::STATUS != 0 { LINK_UP } else { 0 }.into(),
                max_virtqueue_pairs: pairs.into(),
                mtu: mtu.unwrap_or_default().into(),
            },
            active: None,
            remains: None,
            links,
            vhost,
            responder,
            rx_limiter,
            tx_limiter,
            timer: Timer::new()?,
            shared: Arc::new(NetShared::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?)),
        })
    }

    /// State shared with other threads.
    pub fn handle(&self) -> NetHandle {
        NetHandle { shared: Arc::clone(&self.shared) }
    }

    /// Event sources of its thread in addition to the queues.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn sources(&self) -> std::io::Result<Vec<EventSource>> {
        if let Some(vhost) = &self.vhost {
            return vhost.sources();
        }
        // SAFETY: the event is open for as long as `shared` lives, which is longer than the borrow.
        let wake = unsafe { BorrowedFd::borrow_raw(self.shared.wake.as_raw_fd()) };
        let mut sources = Vec::new();
        for fd in [wake, self.timer.as_fd()] {
            sources.push(EventSource::readable(fd.try_clone_to_owned()?, 0));
        }
        for (pair, link) in (0..).zip(&self.links) {
            sources.push(EventSource::readable(link.as_fd().try_clone_to_owned()?, 2 * pair));
            if link.can_fill_up() {
                let fd = link.as_fd().try_clone_to_owned()?;
                let when = Readiness::Writable;
                sources.push(EventSource { fd, queue: 2 * pair + 1, when });
            }
        }
        Ok(sources)
    }

    /// The role of queue `index` with the features agreed on (5.1.2).
    fn role(active: &ActiveNet, index: u16) -> Option<NetQueue> {
        let at = usize::from(index);
        match at / 2 {
            pair if pair < active.count && at.is_multiple_of(2) => Some(NetQueue::Receive(pair)),
            pair if pair < active.count => Some(NetQueue::Transmit(pair)),
            pair if pair == active.count && at.is_multiple_of(2) => Some(NetQueue::Control),
            _ => None,
        }
    }

    fn round(
        &mut self,
        active: &mut ActiveNet,
        index: u16,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        if active.offloaded.as_ref().is_some_and(RunningRings::has_failed) {
            self.leave_to_drop(active.offloaded.take());
            return Err(failure("vhost-net finds a queue to be invalid"));
        }
        if index == 0 {
            self.wake_up(active);
        }
        let progress = match Self::role(active, index) {
            Some(NetQueue::Receive(pair)) => self.receive(active, pair, deadline)?,
            Some(NetQueue::Transmit(pair)) => self.transmit(active, pair, deadline)?,
            Some(NetQueue::Control) => self.control(active, deadline)?,
            None => Progress::Done,
        };
        self.look_at_links(active);
        self.set_timer(active);
        Ok(progress)
    }

    /// The timer or the event may have caused this round: queues held back by the rate limit get
    /// their own round once admitted.
    fn wake_up(&mut self, active: &ActiveNet) {
        // Watched edge-triggered: the event need not be read.
        self.timer.acknowledge();
        let limits = self.shared.take_pending();
        let now = Instant::now();
        self.rx_limiter.update(limits.rx.0, limits.rx.1, now);
        self.tx_limiter.update(limits.tx.0, limits.tx.1, now);
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now || !limits.is_empty());
        for pair in &active.pairs {
            if due(pair.rx_at) {
                pair.receiver.kick_self();
            }
            if due(pair.tx_at) {
                pair.transmitter.kick_self();
            }
        }
    }

    /// Tells log and driver of a link that has gone down.
    fn look_at_links(&mut self, active: &ActiveNet) {
        for link in &mut self.links {
            let Link::Stream(stream) = link else { continue };
            let Some(end) = stream.take_end() else { continue };
            tracing::warn!(%end, "a network interface has lost its connection");
            self.config.status = 0.into();
            active.interrupt.publish_config(self.config.as_bytes());
            if let Err(error) = active.interrupt.signal_config_change() {
                tracing::warn!(%error, "cannot interrupt the driver of a network interface");
            }
        }
    }

    fn receive(
        &mut self,
        active: &mut ActiveNet,
        at: usize,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        let (Some(pair), Some(link)) = (active.pairs.get_mut(at), self.links.get_mut(at)) else {
            return Ok(Progress::Done);
        };
        // Its replies use the first pair.
        let responder = if at == 0 { self.responder.as_mut() } else { None };
        let counters = &self.shared.counters;
        let limiter = &mut self.rx_limiter;
        let end = pair.receiver.run(link, responder, limiter, counters, deadline);
        let end = end.map_err(failure)?;
        pair.rx_at = throttled(end);
        Ok(end.progress())
    }

    fn transmit(
        &mut self,
        active: &mut ActiveNet,
        at: usize,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        let (Some(pair), Some(link)) = (active.pairs.get_mut(at), self.links.get_mut(at)) else {
            return Ok(Progress::Done);
        };
        let counters = &self.shared.counters;
        let limiter = &mut self.tx_limiter;
        let responder = self.responder.as_mut();
        let end = pair.transmitter.run(link, responder, limiter, counters, deadline);
        let end = end.map_err(failure)?;
        pair.tx_at = throttled(end);
        let answers = self.responder.as_ref().is_some_and(|responder| responder.has_frames());
        if answers && self.receive(active, 0, deadline)? == Progress::More {
            // Only the queue of this round is processed again by itself.
            active.pairs[0].receiver.kick_self();
        }
        Ok(end.progress())
    }

    fn control(
        &mut self,
        active: &mut ActiveNet,
        deadline: &mut Deadline,
    ) -> Result<Progress, DeviceFailure> {
        let Some(queue) = &mut active.control else { return Ok(Progress::Done) };
        let set_pairs = |pairs, deadline: &mut Deadline| {
            deadline.charge(self.links.len() as u64 * Deadline::SYSCALL);
            use_pairs(&self.links, pairs)
        };
        control_queue::run(queue, deadline, set_pairs).map_err(failure)
    }

    /// Ends what the host's kernel does for `remains` once the transport has released the lock.
    fn leave_to_drop<T: Any + Send>(&mut self, remains: Option<T>) {
        self.remains = remains.map(|remains| Box::new(remains) as Box<dyn Any + Send>);
        self.shared.counters.vhost_queues.store(0, Ordering::Relaxed);
    }

    /// Sets the timer to the next deadline.
    fn set_timer(&mut self, active: &ActiveNet) {
        let answers =
            self.responder.as_mut().and_then(|responder| responder.next_deadline(Instant::now()));
        let limits = active.pairs.iter().flat_map(|pair| [pair.rx_at, pair.tx_at]);
        self.timer.set(limits.chain([answers]).flatten().min());
    }
}

fn throttled(end: RoundEnd) -> Option<Instant> {
    match end {
        RoundEnd::Throttled(at) => Some(at),
        RoundEnd::Idle | RoundEnd::Deadline => None,
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn publishes_config(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_slice(self.config.as_bytes(), offset, data);
    }

    /// No field is the driver's to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        NetCounters::add(&self.shared.counters.cfg_fails, 1);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let Activation { features, queues, interrupt, .. } = activation;
        let count = if features & feature::MQ != 0 { self.links.len() } else { 1 };
        for link in &self.links {
            if let Err(error) = link.set_offloads(features) {
                NetCounters::add(&self.shared.counters.activate_fails, 1);
                return Err(failure(format_args!("cannot set the offloads of the TAP: {error}")));
            }
        }
        // Until the driver says otherwise it uses one pair (5.1.5).
        use_pairs(&self.links, 1);
        let mut queues = queues;
        let mut rest = queues.split_off(queues.len().min(2 * count)).into_iter();
        let control = rest.next().filter(|_| features & feature::CTRL_VQ != 0);
        let counters = &self.shared.counters;
        let start = |vhost: &VhostNet| vhost.start(&self.links, &queues, features, &*interrupt);
        let offloaded = self.vhost.as_ref().map(start).transpose().map_err(|error| {
            NetCounters::add(&counters.activate_fails, 1);
            failure(error)
        })?;
        let pairs = if offloaded.is_some() { Vec::new() } else { Pair::all(queues, features) };
        let rings = offloaded.as_ref().map_or(0, RunningRings::count);
        counters.vhost_queues.store(rings, Ordering::Relaxed);
        self.active = Some(ActiveNet { count, pairs, offloaded, control, interrupt });
        Ok(())
    }

    fn reset(&mut self) {
        let active = self.active.take();
        self.leave_to_drop(active);
        self.timer.set(None);
        if let Some(responder) = &mut self.responder {
            responder.reset();
        }
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.remains.take()
    }

    /// The control queue has a number of its own only with [`feature::MQ`]: without it there is no
    /// command that it could carry.
    fn is_offloaded(&self, queue: u16) -> bool {
        self.vhost.is_some() && usize::from(queue) < 2 * self.links.len()
    }

    fn stop_queue(&mut self, queue: u16) {
        let Some(active) = &mut self.active else { return };
        let Some(ring) = active.offloaded.as_mut().and_then(|rings| rings.take(queue)) else {
            return;
        };
        self.shared.counters.vhost_queues.fetch_sub(1, Ordering::Relaxed);
        self.remains = Some(Box::new(ring));
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.round(&mut active, queue, deadline);
        self.active = Some(active);
        result
    }
}

fn failure(cause: impl std::fmt::Display) -> DeviceFailure {
    DeviceFailure::new(NAME, cause)
}
