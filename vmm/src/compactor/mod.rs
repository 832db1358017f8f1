// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that runs compaction passes, one at a time, and one that walks the page table for
//! requests.
//!
//! ```text
//!  API ─ PassJob ─▶ ┌───────────┐  map, plan, steps   ┌───────────┐
//!                   │ thread mm │ ──────────────────▶ │ guest RAM │
//!  schedule, PSI, ──▶ ──────────┘ ◀── holdings ────── │ balloon   │
//!  GPU                    └─ report ─▶ the caller     └───────────┘
//! ```
//!
//! Only the caller of a pass waits for it: vCPUs run on, and the event loop hands over. Work that no
//! client asked for (scheduled passes, eviction by the memory policy) makes room for a client's.
//! May use: `mm::blocks`, `devices::balloon`, `devices::gpu`. Must not use: KVM, the API.
//!
//! - `job.rs`: jobs for the thread
//! - `live_guest.rs`: what a pass needs from the devices
//! - `loan.rs`: memory borrowed from the guest before a park
//! - `turn.rs`: who may use the thread
//! - `schedule.rs`: when to run a background pass
//! - `pressure.rs`: the host's signal that memory is short
//! - `walker.rs`: walks for requests

mod job;
mod live_guest;
mod loan;
mod pressure;
mod schedule;
mod turn;
mod walker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mm::blocks::map::Totals;
use mm::blocks::pass::Pass;
use mm::blocks::report::PassReport;
use mm::guest_ram::GuestRamError;
use tracing::{debug, warn};

pub use job::{AloneTask, CompactorError, PassJob, WhenPassDone};
pub use live_guest::{LiveGuest, SharedBalloon};
use pressure::Pressure;
pub use schedule::PassSchedule;
use schedule::{MapCheck, Scheduler};
use turn::Turn;
use walker::Walker;

/// How often the schedule is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far the present pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionProgress {
    /// Whether one runs.
    pub running: bool,
    /// Steps taken.
    pub done: usize,
    /// Steps planned.
    pub planned: usize,
}

/// The handle of the thread; dropping it cancels the running job and joins the thread.
pub struct Compactor {
    messages: Option<Arc<SyncSender<Message>>>,
    shared: Arc<PassRecord>,
    guest: LiveGuest,
    walker: Walker,
    thread: Option<JoinHandle<()>>,
}

/// A handle for background work on the thread. It does not keep the thread alive.
#[derive(Clone)]
pub struct BackgroundWork {
    messages: Weak<SyncSender<Message>>,
    shared: Arc<PassRecord>,
}

impl BackgroundWork {
    /// Runs `task` if the thread is free. Its cancel flag is also set when a client needs the
    /// thread.
    ///
    /// # Errors
    ///
    /// [`CompactorError`]: a pass or a task is already running, or the thread has stopped; the task
    /// is dropped.
    pub fn run(&self, task: AloneTask) -> Result<(), CompactorError> {
        let messages = self.messages.upgrade().ok_or(CompactorError::Stopped)?;
        if !self.shared.turn.take_for_background() {
            return Err(CompactorError::Busy);
        }
        messages.try_send(Message::Background(task)).map_err(|error| {
            self.shared.turn.end_of_background();
            refusal(&error)
        })
    }
}

fn refusal(error: &TrySendError<Message>) -> CompactorError {
    match error {
        TrySendError::Full(_) => CompactorError::Busy,
        TrySendError::Disconnected(_) => CompactorError::Stopped,
    }
}

/// Messages to the thread.
enum Message {
    /// A pass is requested.
    Job(PassJob, WhenPassDone),
    /// Work that must not meet a pass.
    Alone(AloneTask),
    /// The same, and no client asked for it.
    Background(AloneTask),
    /// The GPU has a new buffer that could do with huge pages.
    LargeBuffer,
}

/// State shared by the thread and its handle.
#[derive(Default)]
struct PassRecord {
    turn: Turn,
    gpu_asks: AtomicBool,
    done: AtomicUsize,
    planned: AtomicUsize,
    last: Mutex<Option<PassReport>>,
}

impl Compactor {
    /// Starts the thread. With `schedule` it also runs passes unasked.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn start(guest: LiveGuest, schedule: Option<PassSchedule>) -> io::Result<Self> {
        // Room for one job of a client, one of the background, and one request of the GPU.
        let (messages, incoming) = mpsc::sync_channel(3);
        let messages = Arc::new(messages);
        let shared = Arc::new(PassRecord::default());
        let worker = CompactorWorker { guest: guest.clone(), shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("mm".into())
            .stack_size(256 << 10)
            .spawn(move || worker.run(&incoming, schedule))?;
        if schedule.is_some() {
            let (messages, shared) = (SyncSender::clone(&messages), Arc::clone(&shared));
            guest.on_large_gpu_buffer(Some(Box::new(move || {
                // One pending message is enough.
                if !shared.gpu_asks.swap(true, Ordering::AcqRel)
                    && messages.try_send(Message::LargeBuffer).is_err()
                {
                    shared.gpu_asks.store(false, Ordering::Release);
                }
            })));
        }
        let walker = Walker::start(guest.clone())?;
        Ok(Self { messages: Some(messages), shared, guest, walker, thread: Some(thread) })
    }

    /// Has a pass run, if none does; `when_done` is called with the result.
    ///
    /// # Errors
    ///
    /// [`CompactorError`]: a pass or a task is already running, or the thread has stopped.
    pub fn submit(&self, job: PassJob, when_done: WhenPassDone) -> Result<(), CompactorError> {
        self.send(Message::Job(job, when_done))
    }

    /// Runs `task` on the thread, if no pass runs; no pass begins before it has ended.
    /// [`cancel`](Self::cancel) asks it to end early, as does the end of the machine.
    ///
    /// # Errors
    ///
    /// [`CompactorError`]: a pass or a task is already running, or the thread has stopped.
    pub fn run_alone(&self, task: AloneTask) -> Result<(), CompactorError> {
        self.send(Message::Alone(task))
    }

    fn send(&self, message: Message) -> Result<(), CompactorError> {
        let sender = self.messages.as_ref().ok_or(CompactorError::Stopped)?;
        if !self.shared.turn.take_for_client() {
            return Err(CompactorError::Busy);
        }
        self.guest.wake();
        sender.try_send(message).map_err(|error| {
            self.shared.turn.end_of_client();
            refusal(&error)
        })
    }

    /// What passes need from the machine.
    pub fn guest(&self) -> &LiveGuest {
        &self.guest
    }

    /// A handle for background work.
    pub fn background(&self) -> BackgroundWork {
        let messages = self.messages.as_ref().map(Arc::downgrade).unwrap_or_default();
        BackgroundWork { messages, shared: Arc::clone(&self.shared) }
    }

    /// Asks the present pass to end after the step that it is at.
    pub fn cancel(&self) {
        self.shared.turn.cancel();
        self.guest.wake();
    }

    /// How far the present pass is.
    pub fn progress(&self) -> CompactionProgress {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        CompactionProgress {
            running: self.shared.turn.is_taken(),
            done: load(&self.shared.done),
            planned: load(&self.shared.planned),
        }
    }

    /// Report of the last pass.
    pub fn last_report(&self) -> Option<PassReport> {
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has `look` look at the guest's memory, on a thread where that delays no other work.
    ///
    /// # Errors
    ///
    /// [`CompactorError::TooManyWalks`]; `look` is dropped then.
    pub fn walk(
        &self,
        look: impl FnOnce(&LiveGuest) + Send + 'static,
    ) -> Result<(), CompactorError> {
        self.walker.submit(Box::new(look))
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.cancel();
        // The thread ends when all senders are dropped.
        self.guest.on_large_gpu_buffer(None);
        self.messages = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the compactor thread panicked");
        }
    }
}

/// The thread.
struct CompactorWorker {
    guest: LiveGuest,
    shared: Arc<PassRecord>,
}

impl CompactorWorker {
    fn run(self, messages: &Receiver<Message>, schedule: Option<PassSchedule>) {
        let mut scheduler = schedule.map(|policy| {
            let pressure = policy.stall.and_then(|stall| match Pressure::watch(stall) {
                Ok(pressure) => Some(pressure),
                Err(error) => {
                    warn!("cannot watch the host's memory pressure: {error}");
                    None
                }
            });
            Scheduler::new(policy, pressure, Instant::now())
        });
        loop {
            let next = match &scheduler {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(scheduler) => {
                    messages.recv_timeout(scheduler.wait(Instant::now()).min(LOOK_EVERY))
                }
            };
            match (next, &mut scheduler) {
                (Ok(Message::Job(job, when_done)), _) => {
                    let result = self.pass(&job, self.shared.turn.client_cancel());
                    self.finish();
                    self.shared.turn.end_of_client();
                    when_done(result);
                }
                (Ok(Message::Alone(task)), _) => {
                    let when_done = task(&self.guest, self.shared.turn.client_cancel());
                    self.finish();
                    self.shared.turn.end_of_client();
                    when_done();
                }
                (Ok(Message::Background(task)), _) => {
                    let when_done = task(&self.guest, self.shared.turn.background_cancel());
                    self.shared.turn.end_of_background();
                    when_done();
                }
                (Ok(Message::LargeBuffer), Some(scheduler)) => {
                    self.shared.gpu_asks.store(false, Ordering::Release);
                    scheduler.gpu_asks(Instant::now());
                }
                (Err(RecvTimeoutError::Timeout), Some(scheduler)) => self.look(scheduler),
                (Ok(Message::LargeBuffer), None) => {}
                (Err(_), _) => return,
            }
        }
    }

    /// Runs a background pass, if the policy calls for one and none is running.
    fn look(&self, scheduler: &mut Scheduler) {
        let Some(look) = scheduler.wants_look(Instant::now()) else { return };
        // Looking for better places for parked memory would only wake it up.
        if self.guest.is_mostly_absent() {
            return;
        }
        if !self.shared.turn.take_for_background() {
            // A new job has arrived, which runs first.
            if look == MapCheck::AtTheGpu {
                scheduler.gpu_asks(Instant::now());
            }
            return;
        }
        let totals = self.guest.map().map(|map| map.totals());
        let job = totals.map(|totals: Totals| match look {
            MapCheck::AtEverything => scheduler.decide(&totals),
            MapCheck::AtTheGpu => scheduler.serve_gpu(&totals),
        });
        match job {
            Ok(Some(job)) => match self.pass(&job, self.shared.turn.background_cancel()) {
                Ok(report) => debug!(?report, "scheduled compaction"),
                Err(error) => warn!("scheduled compaction: {error}"),
            },
            Ok(None) => {}
            Err(error) => warn!("cannot read the block map: {error}"),
        }
        self.finish();
        self.shared.turn.end_of_background();
    }

    fn pass(&self, job: &PassJob, cancel: &AtomicBool) -> Result<PassReport, GuestRamError> {
        let shared = &self.shared;
        let mut goals = job.goals.clone();
        if !self.guest.can_evacuate() {
            goals.evacuate_up_to = None;
            goals.gather = false;
            goals.squeeze = false;
        }
        let pass = Pass::new(self.guest.ram(), &self.guest, goals, job.limits);
        let report = pass.run(cancel, &mut |done, planned| {
            shared.done.store(done, Ordering::Relaxed);
            shared.planned.store(planned, Ordering::Relaxed);
        })?;
        *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        Ok(report)
    }

    fn finish(&self) {
        self.shared.done.store(0, Ordering::Relaxed);
        self.shared.planned.store(0, Ordering::Relaxed);
    }
}
