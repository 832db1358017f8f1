// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that runs compaction passes, one at a time.
//!
//! ```text
//!  API ── Job ──▶ ┌───────────┐  map, plan, steps   ┌───────────┐
//!                 │ thread mm │ ──────────────────▶ │ guest RAM │
//!  policy, PSI, ▶ └───────────┘ ◀── holdings ────── │ balloon   │
//!  GPU                  └─ Report ─▶ whoever asked  └───────────┘
//! ```
//!
//! Nobody waits for a pass but who asked to: vCPUs run on, and the event loop only hands over.
//! May use: `mm::blocks`, `devices::balloon`, `devices::gpu`. Must not use: KVM, the API.
//!
//! - `guest_side.rs`: what a pass needs of the devices
//! - `policy.rs`: when to run one unasked
//! - `pressure.rs`: the host's word that memory is short

mod guest_side;
mod policy;
mod pressure;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mm::blocks::map::{BlockMap, Totals};
use mm::blocks::pass::{GuestSide, Pass, Report};
use mm::blocks::policy::{Budget, Costs, Goals};
use mm::guest_ram::GuestRamError;
use tracing::{debug, warn};

pub use guest_side::{LiveGuest, SharedBalloon};
pub use policy::Background;
use policy::{Look, Watch};
use pressure::Pressure;

/// How often the background policy looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a pass is asked for.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is for; whether the guest can evacuate is found out when it runs.
    pub goals: Goals,
    /// What it may spend.
    pub budget: Budget,
}

/// Called on the compactor's thread when a job is done.
pub type WhenDone = Box<dyn FnOnce(Result<Report, GuestRamError>) + Send>;

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompactorError {
    /// Two passes at once would undo each other's plans.
    #[error("A compaction pass is running; wait for it or cancel it.")]
    Busy,
    /// The machine is being taken down.
    #[error("The compactor has stopped.")]
    Stopped,
}

/// How far the present pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Whether one runs.
    pub running: bool,
    /// Steps taken.
    pub done: usize,
    /// Steps planned.
    pub planned: usize,
}

/// The handle on the thread; dropping it cancels what runs and waits for the thread.
pub struct Compactor {
    messages: Option<SyncSender<Message>>,
    shared: Arc<Shared>,
    guest: LiveGuest,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Message {
    /// Somebody wants a pass.
    Job(Job, WhenDone),
    /// The GPU has a new buffer that could do with huge pages.
    LargeBuffer,
}

/// What the thread and its handle have in common.
#[derive(Default)]
struct Shared {
    busy: AtomicBool,
    cancel: AtomicBool,
    gpu_asks: AtomicBool,
    done: AtomicUsize,
    planned: AtomicUsize,
    last: Mutex<Option<Report>>,
}

impl Compactor {
    /// Starts the thread. With `background` it also runs passes unasked.
    pub fn start(guest: LiveGuest, background: Option<Background>) -> io::Result<Self> {
        // Room for the one job that `busy` admits, and for one word of the GPU's.
        let (messages, incoming) = mpsc::sync_channel(2);
        let shared = Arc::new(Shared::default());
        let worker = Worker { guest: guest.clone(), shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("mm".into())
            .stack_size(256 << 10)
            .spawn(move || worker.run(&incoming, background))?;
        if background.is_some() {
            let (messages, shared) = (messages.clone(), Arc::clone(&shared));
            guest.on_large_gpu_buffer(Some(Box::new(move || {
                // One word is enough, until it is heard.
                if !shared.gpu_asks.swap(true, Ordering::AcqRel)
                    && messages.try_send(Message::LargeBuffer).is_err()
                {
                    shared.gpu_asks.store(false, Ordering::Release);
                }
            })));
        }
        Ok(Self { messages: Some(messages), shared, guest, thread: Some(thread) })
    }

    /// Has a pass run, if none does; `when_done` is told the result.
    pub fn submit(&self, job: Job, when_done: WhenDone) -> Result<(), CompactorError> {
        if self.shared.busy.swap(true, Ordering::AcqRel) {
            return Err(CompactorError::Busy);
        }
        self.shared.cancel.store(false, Ordering::Release);
        let sender = self.messages.as_ref().ok_or(CompactorError::Stopped)?;
        sender.try_send(Message::Job(job, when_done)).map_err(|error| match error {
            TrySendError::Full(_) => CompactorError::Busy,
            TrySendError::Disconnected(_) => CompactorError::Stopped,
        })
    }

    /// Asks the present pass to end after the step that it is at.
    pub fn cancel(&self) {
        self.shared.cancel.store(true, Ordering::Release);
    }

    /// How far the present pass is.
    pub fn progress(&self) -> Progress {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Progress {
            running: self.shared.busy.load(Ordering::Acquire),
            done: load(&self.shared.done),
            planned: load(&self.shared.planned),
        }
    }

    /// What the last pass did.
    pub fn last_report(&self) -> Option<Report> {
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The block map as it is now.
    pub fn map(&self) -> Result<BlockMap, GuestRamError> {
        BlockMap::read(self.guest.ram(), &self.guest.holdings())
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.cancel();
        // The thread ends when nobody is left who could send to it.
        self.guest.on_large_gpu_buffer(None);
        self.messages = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the compactor's thread had panicked");
        }
    }
}

/// The thread.
struct Worker {
    guest: LiveGuest,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self, messages: &Receiver<Message>, background: Option<Background>) {
        let mut watch = background.map(|policy| {
            let pressure = policy.stall.and_then(|stall| match Pressure::watch(stall) {
                Ok(pressure) => Some(pressure),
                Err(error) => {
                    warn!("the host's memory pressure cannot be watched: {error}");
                    None
                }
            });
            Watch::new(policy, pressure, Instant::now())
        });
        loop {
            let next = match &watch {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(watch) => messages.recv_timeout(watch.wait(Instant::now()).min(LOOK_EVERY)),
            };
            match (next, &mut watch) {
                (Ok(Message::Job(job, when_done)), _) => {
                    let result = self.pass(&job);
                    self.finish();
                    when_done(result);
                }
                (Ok(Message::LargeBuffer), Some(watch)) => {
                    self.shared.gpu_asks.store(false, Ordering::Release);
                    watch.gpu_asks(Instant::now());
                }
                (Err(RecvTimeoutError::Timeout), Some(watch)) => self.look(watch),
                (Ok(Message::LargeBuffer), None) => {}
                (Err(_), _) => return,
            }
        }
    }

    /// Runs a pass unasked, if the policy calls for one and nobody else has one run.
    fn look(&self, watch: &mut Watch) {
        let Some(look) = watch.wants_look(Instant::now()) else { return };
        if self.shared.busy.swap(true, Ordering::AcqRel) {
            // A job has come meanwhile, which goes first.
            if look == Look::AtTheGpu {
                watch.gpu_asks(Instant::now());
            }
            return;
        }
        self.shared.cancel.store(false, Ordering::Release);
        let totals = BlockMap::read(self.guest.ram(), &self.guest.holdings()).map(|m| m.totals());
        let job = totals.map(|totals: Totals| match look {
            Look::AtEverything => watch.decide(&totals),
            Look::AtTheGpu => watch.serve_gpu(&totals),
        });
        match job {
            Ok(Some(job)) => match self.pass(&job) {
                Ok(report) => debug!(?report, "background compaction"),
                Err(error) => warn!("background compaction: {error}"),
            },
            Ok(None) => {}
            Err(error) => warn!("the block map cannot be read: {error}"),
        }
        self.finish();
    }

    fn pass(&self, job: &Job) -> Result<Report, GuestRamError> {
        let shared = &self.shared;
        let mut goals = job.goals.clone();
        if !self.guest.can_evacuate() {
            goals.evacuate_up_to = None;
            goals.gather = false;
            goals.squeeze = false;
        }
        let (ram, guest, costs) = (self.guest.ram(), &self.guest, Costs::default());
        let pass = Pass { ram, guest, goals, budget: job.budget, costs };
        let report = pass.run(&shared.cancel, &mut |done, planned| {
            shared.done.store(done, Ordering::Relaxed);
            shared.planned.store(planned, Ordering::Relaxed);
        })?;
        *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        Ok(report)
    }

    fn finish(&self) {
        self.shared.done.store(0, Ordering::Relaxed);
        self.shared.planned.store(0, Ordering::Relaxed);
        self.shared.busy.store(false, Ordering::Release);
    }
}
