// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parking without a machine: memory, the compactor's thread, and no guest.

use std::sync::mpsc;

use mm::backing::BackingKind;
use mm::layout::MemoryLayout;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::compactor::PassJob;
use crate::event_loop::EventLoop;
use mm::blocks::policy::{Goals, PassLimits};

struct Fixture {
    ram: Arc<GuestRam>,
    compactor: Compactor,
    parking: Parking,
    _events: EventLoop,
}

impl Fixture {
    fn new() -> Self {
        let layout = MemoryLayout::new(Bytes::from_mib(16).unwrap(), Bytes(0)).unwrap();
        let ram = Arc::new(GuestRam::new(layout, BackingKind::Thp).unwrap());
        for page in 0..4096u64 {
            ram.memory().write_obj(page + 1, GuestAddress(page << 12)).unwrap();
        }
        let events = EventLoop::new().unwrap();
        let config = PagingConfig { threads: Some(1), ..PagingConfig::default() };
        let (threads, exit) = (Budget::count("threads", 8), events.handle().exit().clone());
        let parking = Parking::start(&ram, &config, 1 << 15, &threads, &exit);
        let parking = parking.expect("run as root");
        let guest = LiveGuest::new(Arc::clone(&ram), None, None);
        let compactor = Compactor::start(guest, None).unwrap();
        Self { ram, compactor, parking, _events: events }
    }

    fn is_intact(&self) -> bool {
        let read = |page: u64| self.ram.memory().read_obj::<u64>(GuestAddress(page << 12)).unwrap();
        (0..4096).all(|page| read(page) == page + 1)
    }
}

#[test]
fn memory_is_parked_and_brought_back_on_the_compactors_thread() {
    let f = Fixture::new();
    let (tell, told) = mpsc::channel();
    let wish = ParkWish { floor: Bytes(0), trim: true };
    f.parking.park(&f.compactor, wish, Box::new(move |done| tell.send(done).unwrap())).unwrap();
    let done: Finished<Parked> = told.recv().unwrap();
    let trim = done.report.trim.clone().unwrap();
    assert_eq!((trim.given, trim.ended.as_str()), (Bytes(0), "the machine has no balloon"));
    assert_eq!(done.report.blocks.parked + done.report.blocks.left.small, 8, "{:?}", done.report);
    assert_eq!(f.parking.last_park(), Some(done.clone()));
    assert_eq!(f.parking.stats().absent_bytes, done.report.blocks.parked << 21);
    let (tell, told) = mpsc::channel();
    let when_done = Box::new(move |done: Finished<UnparkReport>| tell.send(done).unwrap());
    f.parking.unpark(&f.compactor, when_done).unwrap();
    assert_eq!(told.recv().unwrap().report.returned, done.report.blocks.parked);
    assert_eq!(f.parking.stats().absent_bytes, 0);
    assert!(f.is_intact());
}

#[test]
fn a_pass_and_an_eviction_never_meet() {
    let f = Fixture::new();
    let (go, wait) = mpsc::channel::<()>();
    f.compactor
        .run_alone(Box::new(move |_, _| {
            wait.recv().unwrap();
            Box::new(|| ())
        }))
        .unwrap();
    let parked = f.parking.park(&f.compactor, ParkWish::default(), Box::new(|_| ()));
    assert_eq!(parked, Err(CompactorError::Busy));
    let job = PassJob { goals: Goals::all(false), limits: PassLimits::UNLIMITED };
    assert_eq!(f.compactor.submit(job, Box::new(|_| ())), Err(CompactorError::Busy));
    go.send(()).unwrap();
}

/// A client does not wait for work that no client asked for: that is asked to end.
#[test]
fn parking_takes_the_place_of_work_in_the_background() {
    let f = Fixture::new();
    let (began, is_running) = mpsc::channel();
    let background = f.compactor.background();
    background
        .run(Box::new(move |_, cancel| {
            began.send(()).unwrap();
            while !cancel.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Box::new(|| ())
        }))
        .unwrap();
    is_running.recv().unwrap();
    assert_eq!(background.run(Box::new(|_, _| Box::new(|| ()))), Err(CompactorError::Busy));
    let (tell, told) = mpsc::channel();
    let wish = ParkWish { floor: Bytes(0), trim: true };
    f.parking.park(&f.compactor, wish, Box::new(move |done| tell.send(done).unwrap())).unwrap();
    let done: Finished<Parked> = told.recv().unwrap();
    let trim = done.report.trim.clone().unwrap();
    assert_eq!((trim.given, trim.ended.as_str()), (Bytes(0), "the machine has no balloon"));
    assert_eq!(done.report.blocks.stopped, None);
    assert!(f.is_intact());
}

#[test]
fn the_end_of_the_machine_ends_parking_and_loses_nothing() {
    let Fixture { ram, compactor, parking, _events } = Fixture::new();
    parking.park(&compactor, ParkWish::default(), Box::new(|_| ())).unwrap();
    // Cancels, and waits for the thread.
    drop(compactor);
    assert_eq!(parking.progress().operation, None);
    let read = |page: u64| ram.memory().read_obj::<u64>(GuestAddress(page << 12)).unwrap();
    assert!((0..4096).all(|page| read(page) == page + 1));
}
