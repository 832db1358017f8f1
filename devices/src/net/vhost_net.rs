// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-net: threads of the host's kernel move frames between the queues and a TAP
//! (linux/vhost.h).
//!
//! Notifications and interrupts go past the monitor: the queue's event is KVM's ioeventfd, and the
//! event that the kernel writes is its irqfd. One instance of vhost-net, with a thread, serves one
//! pair of queues.
//!
//! The kernel accesses guest memory by the addresses of this process, as its owner would: absent
//! pages are faulted in, and those that were given back read as zero. Nothing is pinned.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net as KernelNet;
use vhost::vhost_kern::vhost_binding::{VHOST_SET_VRING_ADDR, vhost_vring_addr};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::link::Link;
use super::protocol::feature;
use crate::virtio::{DeviceQueue, EventSource, GuestMemoryMmap, Interrupt};

/// Features of whatever moves the frames; the others are the TAP's or the monitor's.
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | feature::MRG_RXBUF;

/// Why vhost-net cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The module is not loaded, or the process may not use it.
    #[error("cannot open /dev/vhost-net: {0}; load the module `vhost_net` or grant access to it")]
    Open(vhost::Error),
    /// A call failed.
    #[error("vhost-net cannot {doing}: {source}")]
    Call {
        /// What it was to do.
        doing: &'static str,
        /// What the kernel said.
        source: vhost::Error,
    },
    /// The process has no descriptor left.
    #[error("no event for vhost-net: {0}")]
    Event(#[from] io::Error),
    /// The driver has put a ring where there is no RAM.
    #[error("a ring of queue {0} is not in guest RAM")]
    Ring(u16),
    /// Frames of something other than a TAP.
    #[error("vhost-net moves the frames of a TAP only")]
    NoTap,
}

/// Attaches what was tried to the kernel's error.
fn call(doing: &'static str) -> impl Fn(vhost::Error) -> VhostError {
    move |source| VhostError::Call { doing, source }
}

/// The kernel's side of one network interface, before and between its driver's activations.
pub struct VhostNet {
    pairs: Vec<Arc<VhostPair>>,
    features: u64,
}

/// An instance of vhost-net: two rings, 0 for receiving and 1 for sending, and a thread.
struct VhostPair {
    /// Keeps guest memory mapped for as long as the kernel may access it.
    kernel: KernelNet<Arc<GuestMemoryMmap>>,
    /// The kernel writes here when it finds a ring to be invalid.
    failed: EventFd,
}

impl VhostNet {
    /// Has the kernel prepare `pairs` pairs of queues in `mem`, with a thread each.
    ///
    /// # Errors
    ///
    /// [`VhostError`]: the host has no vhost-net, or refuses it.
    pub fn open(mem: &Arc<GuestMemoryMmap>, pairs: u16) -> Result<Self, VhostError> {
        let pairs: Vec<_> =
            (0..pairs).map(|_| VhostPair::open(mem).map(Arc::new)).collect::<Result<_, _>>()?;
        let mut features = RING_FEATURES;
        for pair in &pairs {
            features &= pair.kernel.get_features().map_err(call("tell its features"))?;
        }
        if features & (1 << VIRTIO_F_VERSION_1) == 0 {
            return Err(call("serve virtio 1")(vhost::Error::InvalidOperation));
        }
        Ok(Self { pairs, features })
    }

    /// Tries whether the host has vhost-net for this process, with a page of memory.
    ///
    /// # Errors
    ///
    /// [`VhostError`]: the host has no vhost-net, or refuses it.
    pub fn probe() -> Result<(), VhostError> {
        let page = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]);
        Self::open(&Arc::new(page.map_err(io::Error::other)?), 1).map(drop)
    }

    /// Of `features`, what the device can offer with the kernel behind it.
    pub(super) fn limit_features(&self, features: u64) -> u64 {
        features & (self.features | !RING_FEATURES)
    }

    /// Events that lead to a look at [`RunningRings::has_failed`].
    pub(super) fn sources(&self) -> io::Result<Vec<EventSource>> {
        let source = |(number, pair): (u16, &Arc<VhostPair>)| {
            // SAFETY: the event is open for as long as the pair lives, longer than the borrow.
            let fd = unsafe { BorrowedFd::borrow_raw(pair.failed.as_raw_fd()) };
            Ok(EventSource::readable(fd.try_clone_to_owned()?, 2 * number))
        };
        (0..).zip(&self.pairs).map(source).collect()
    }

    /// Lets the kernel process `queues`, of which each two are a pair, until the result is dropped.
    pub(super) fn start(
        &self,
        links: &[Link],
        queues: &[DeviceQueue],
        features: u64,
        interrupt: &dyn Interrupt,
    ) -> Result<RunningRings, VhostError> {
        let interrupt = interrupt.share()?;
        let mut running = RunningRings(Vec::new());
        for ((pair, link), queues) in self.pairs.iter().zip(links).zip(queues.chunks(2)) {
            let Link::Tap(tap) = link else { return Err(VhostError::NoTap) };
            let tap = File::from(tap.as_fd().try_clone_to_owned()?);
            pair.kernel.set_features(features & RING_FEATURES).map_err(call("set features"))?;
            // What was reported before concerns the rings of before.
            let _ = pair.failed.read();
            for (ring, queue) in queues.iter().enumerate().filter(|(_, queue)| queue.ready()) {
                pair.set_up(ring, queue, &interrupt)?;
                let started = pair.kernel.set_backend(ring, Some(&tap));
                started.map_err(call("start a queue"))?;
                running.0.push(RunningRing { pair: Arc::clone(pair), ring, queue: queue.index() });
            }
        }
        Ok(running)
    }
}

impl VhostPair {
    fn open(mem: &Arc<GuestMemoryMmap>) -> Result<Self, VhostError> {
        let kernel = KernelNet::new(Arc::clone(mem)).map_err(VhostError::Open)?;
        kernel.set_owner().map_err(call("start a thread"))?;
        let regions: Vec<_> = mem
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..VhostUserMemoryRegionInfo::default()
            })
            .collect();
        kernel.set_mem_table(&regions).map_err(call("take guest memory"))?;
        Ok(Self { kernel, failed: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? })
    }

    /// Tells the kernel of a ring that is not running.
    fn set_up(
        &self,
        ring: usize,
        queue: &DeviceQueue,
        interrupt: &EventFd,
    ) -> Result<(), VhostError> {
        let doing = call("set up a queue");
        self.kernel.set_vring_num(ring, queue.size()).map_err(&doing)?;
        // A driver begins at 0 after each reset.
        self.kernel.set_vring_base(ring, 0).map_err(&doing)?;
        self.set_addresses(ring, queue)?;
        self.kernel.set_vring_err(ring, &self.failed).map_err(&doing)?;
        self.kernel.set_vring_call(ring, interrupt).map_err(&doing)?;
        self.kernel.set_vring_kick(ring, queue.kick()).map_err(&doing)
    }

    /// Not by the crate's `set_vring_addr`, which refuses a ring that ends where RAM does.
    fn set_addresses(&self, ring: usize, queue: &DeviceQueue) -> Result<(), VhostError> {
        let entries = usize::from(queue.size());
        let rings = queue.rings();
        let host = |addr: GuestAddress, len| {
            let memory = queue.mem().get_slice(addr, len);
            let memory = memory.map_err(|_| VhostError::Ring(queue.index()))?;
            Ok::<_, VhostError>(memory.ptr_guard_mut().as_ptr() as u64)
        };
        let addresses = vhost_vring_addr {
            index: u32::from(ring != 0),
            flags: 0,
            desc_user_addr: host(rings.descriptors, 16 * entries)?,
            avail_user_addr: host(rings.available, 6 + 2 * entries)?,
            used_user_addr: host(rings.used, 6 + 8 * entries)?,
            log_guest_addr: 0,
        };
        // SAFETY: VHOST_SET_VRING_ADDR reads the structure, which lives during the call. The rings
        // lie in guest memory, which no reference of Rust points into and `kernel` keeps mapped.
        if unsafe { ioctl_with_ref(&self.kernel, VHOST_SET_VRING_ADDR(), &addresses) } < 0 {
            return Err(call("find a queue")(vhost::Error::IoctlError(io::Error::last_os_error())));
        }
        Ok(())
    }
}

/// The rings that the kernel processes. It has left a ring when that is dropped, which takes until
/// the kernel has finished what it is doing.
pub(super) struct RunningRings(Vec<RunningRing>);

impl RunningRings {
    /// Whether the kernel has found a ring to be invalid.
    pub(super) fn has_failed(&self) -> bool {
        self.0.iter().any(|ring| ring.pair.failed.read().is_ok())
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The ring of queue `queue`, which ends when the result is dropped.
    pub(super) fn take(&mut self, queue: u16) -> Option<RunningRing> {
        let at = self.0.iter().position(|ring| ring.queue == queue)?;
        Some(self.0.swap_remove(at))
    }
}

/// One of them.
pub(super) struct RunningRing {
    pair: Arc<VhostPair>,
    ring: usize,
    queue: u16,
}

impl Drop for RunningRing {
    fn drop(&mut self) {
        if let Err(error) = self.pair.kernel.set_backend(self.ring, None) {
            tracing::error!(queue = self.queue, %error, "vhost-net does not stop a queue");
        }
    }
}
