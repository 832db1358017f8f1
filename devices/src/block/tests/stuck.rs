// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host whose disk does not respond for a while: no thread waits for it with the device's lock.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::*;
use crate::block::disk_engine::{DiskEngine, Piece, Started};
use crate::virtio::VirtioDevice;

/// Long enough on any machine; only a lock that is never free takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pieces that have not ended, and whether they may.
#[derive(Default)]
struct Host {
    pieces: Vec<u16>,
    answers: bool,
}

struct StuckEngine(Arc<Mutex<Host>>);

impl DiskEngine for StuckEngine {
    unsafe fn start(&mut self, token: u16, _: Piece<'_>) -> Started {
        self.0.lock().unwrap().pieces.push(token);
        Started::UnderWay
    }

    fn reap(&mut self) -> Option<(u16, io::Result<u64>)> {
        let mut host = self.0.lock().unwrap();
        let token = if host.answers { host.pieces.pop() } else { None };
        token.map(|token| (token, Ok(512)))
    }

    fn wait(&mut self) -> io::Result<()> {
        while !self.0.lock().unwrap().answers {
            thread::yield_now();
        }
        Ok(())
    }

    fn piece_limit(&self) -> usize {
        512
    }
}

/// A disk with a write in flight that the host does not complete.
fn stuck() -> (Rig, Arc<Mutex<Host>>) {
    let mut rig = Rig::new(Disk::Calls);
    let host = Arc::new(Mutex::new(Host::default()));
    rig.device.lock().set_engine(Box::new(StuckEngine(Arc::clone(&host))));
    let at = rig.driver.put(&[7; 1024]);
    rig.add(OUT, 0, &[MockDescriptor::readable(at, 1024)]);
    rig.driver.notify(0);
    rig.driver.run();
    assert_eq!(host.lock().unwrap().pieces.len(), 1);
    (rig, host)
}

/// Whether others get the lock of `device`.
fn is_free(device: &Arc<DeviceLock<BlockDevice>>) -> bool {
    let (device, (done, is_done)) = (Arc::clone(device), mpsc::channel());
    thread::spawn(move || {
        drop(device.lock());
        let _ = done.send(());
    });
    is_done.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout)
}

#[test]
fn a_reset_waits_for_the_host_without_the_lock() {
    let (mut rig, host) = stuck();
    let (device, (done, is_done)) = (Arc::clone(&rig.device), mpsc::channel());
    thread::scope(|scope| {
        scope.spawn(|| {
            rig.driver.reset();
            done.send(()).unwrap();
        });
        let free = is_free(&device);
        // Its buffers are not the driver's before the host has answered.
        let early = is_done.try_recv().is_ok();
        host.lock().unwrap().answers = true;
        is_done.recv().unwrap();
        assert!(free && !early, "free: {free}, early: {early}");
    });
    rig.driver.probe(u64::MAX, 1);
    assert_eq!(rig.capacity(), SECTORS);
}

#[test]
fn another_image_waits_for_the_host_without_holding_up_the_round() {
    let (mut rig, host) = stuck();
    let other = rig.path.with_extension("other");
    create(Disk::Calls, &other, 2 * SECTORS);
    rig.handle.replace(open(&other, false)).unwrap();
    let transport = rig.driver.transport();
    transport.process_queue(0);
    assert!(is_free(&rig.device));
    assert_eq!(std::fs::read(&other).unwrap()[..1024], [0; 1024]);
    host.lock().unwrap().answers = true;
    rig.driver.transport().process_queue(0);
    // The rest of the request went to the new image, and so do later ones.
    assert_eq!(rig.wait(0).1, 1);
    let written = std::fs::read(&other).unwrap();
    assert_eq!((&written[..512], &written[512..1024]), (&[0; 512][..], &[7; 512][..]));
    assert_eq!(rig.write(2 * SECTORS - 1, &[3; 512]), OK);
}

#[test]
fn what_a_reset_leaves_is_freed_by_the_transport() {
    let (rig, host) = stuck();
    host.lock().unwrap().answers = true;
    let mut device = rig.device.lock();
    device.reset();
    let mut deadline = crate::virtio::Deadline::never();
    while device.clean_up(&mut deadline) == crate::virtio::Progress::More {}
    assert!(device.take_remains().is_some(), "requests were freed under the lock");
    assert!(device.take_remains().is_none());
}
