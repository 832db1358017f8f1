// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device from its driver's side, over real files, with each engine.
//!
//! - `requests.rs`: what each request does
//! - `hostile.rs`: misbehaving guests, and what a host may
//! - `lifecycle.rs`: locks, new images, limits, resets
//! - `properties.rs`: any sequence of requests against a model
//! - `stuck.rs`: a host whose disk does not answer

mod hostile;
mod lifecycle;
mod properties;
mod requests;
mod stuck;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::transport::mock::{MockDescriptor, MockDriver};
use crate::virtio::{DeviceLock, GuestMemoryMmap, QueueHost, RateLimiter};

const DRIVER: std::ops::Range<u64> = 0x1000..0x80_0000;
const RAM: usize = 16 << 20;
const SECTORS: u64 = 2048;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Ways to have a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Calls,
    Ring,
    Qcow2,
}

const ALL: [Disk; 3] = [Disk::Calls, Disk::Ring, Disk::Qcow2];

struct Rig {
    driver: MockDriver,
    device: Arc<DeviceLock<BlockDevice>>,
    handle: BlockHandle,
    mem: Arc<GuestMemoryMmap>,
    sources: Vec<OwnedFd>,
    path: PathBuf,
    _dir: TempDir,
}

fn open(path: &Path, read_only: bool) -> File {
    OpenOptions::new().read(true).write(!read_only).open(path).unwrap()
}

/// An image file of `sectors` zero sectors.
fn create(disk: Disk, path: &Path, sectors: u64) {
    use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
    let bytes = sectors * 512;
    if disk != Disk::Qcow2 {
        return File::create(path).unwrap().set_len(bytes).unwrap();
    }
    let options = StorageCreateOptions::new().filename(path);
    let file = imago::file::File::create_open(options).unwrap();
    let builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(file);
    builder.size(bytes).create().unwrap();
}

fn image(disk: Disk, path: &Path, read_only: bool) -> Result<DiskImage, ImageError> {
    let file = open(path, read_only);
    match disk {
        Disk::Qcow2 => DiskImage::qcow2(file, path, read_only, false),
        _ => DiskImage::raw(file, read_only),
    }
}

struct Setup {
    disk: Disk,
    read_only: bool,
    cache: CacheType,
    limiter: RateLimiter,
    queues: u16,
    features: u64,
}

impl Setup {
    fn new(disk: Disk) -> Self {
        Self {
            disk,
            read_only: false,
            cache: CacheType::Writeback,
            limiter: RateLimiter::unlimited(),
            queues: 1,
            features: u64::MAX,
        }
    }

    fn start(self) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(self.disk, &path, SECTORS);
        let config = BlockConfig {
            image: image(self.disk, &path, self.read_only).unwrap(),
            cache: self.cache,
            engine: if self.disk == Disk::Ring { IoEngine::Async } else { IoEngine::Sync },
            limiter: self.limiter,
            queues: self.queues,
            workers: 2,
        };
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let device = BlockDevice::new(config).unwrap();
        let handle = device.handle();
        let sources = device.sources().unwrap().into_iter().map(|source| source.fd).collect();
        let device = Arc::new(DeviceLock::new(device));
        let mut driver = MockDriver::new(Arc::clone(&mem), device.clone(), DRIVER);
        driver.probe(self.features, self.queues);
        Rig { driver, device, handle, mem, sources, path, _dir: dir }
    }
}

impl Rig {
    fn new(disk: Disk) -> Self {
        Setup::new(disk).start()
    }

    /// The device's event loop, until queue `queue` has a buffer back.
    fn wait(&mut self, queue: u16) -> (u16, u32) {
        loop {
            self.driver.run();
            if let Some(used) = self.driver.used(queue) {
                return used;
            }
            let mut fds: Vec<_> =
                self.sources.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&patience)).unwrap();
            assert!(ready > 0, "the device has not answered and waits for no event");
            // The event loop sees each event once; a timer that was read has not gone off again.
            rustix::io::read(&self.sources[0], &mut [0; 8]).ok();
            self.driver.transport().process_queue(0);
        }
    }

    /// Makes a request available; `data` are the descriptors between header and status. Returns
    /// where the status will be.
    fn add(&mut self, kind: u32, sector: u64, data: &[MockDescriptor]) -> (u16, GuestAddress) {
        let header = self.driver.put(&header(kind, sector));
        let status = self.driver.put(&[0xaa]);
        let mut chain = vec![MockDescriptor::readable(header, 16)];
        chain.extend_from_slice(data);
        chain.push(MockDescriptor::writable(status, 1));
        (self.driver.add(0, &chain), status)
    }

    /// Sends a request and returns its status.
    fn send(&mut self, kind: u32, sector: u64, data: &[MockDescriptor]) -> u8 {
        let (head, status) = self.add(kind, sector, data);
        self.driver.notify(0);
        assert_eq!(self.wait(0).0, head);
        self.mem.read_obj(status).unwrap()
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        let mark = self.driver.alloc(0);
        let at = self.driver.put(bytes);
        let status = self.send(OUT, sector, &[MockDescriptor::readable(at, bytes.len() as u32)]);
        self.driver.release(mark);
        status
    }

    fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let mark = self.driver.alloc(0);
        let at = self.driver.put(&vec![0xee; len]);
        let status = self.send(IN, sector, &[MockDescriptor::writable(at, len as u32)]);
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, at).unwrap();
        self.driver.release(mark);
        (status, bytes)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mark = self.driver.alloc(0);
        let mut entry = sector.to_le_bytes().to_vec();
        entry.extend(sectors.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        let at = self.driver.put(&entry);
        let status = self.send(kind, 0, &[MockDescriptor::readable(at, 16)]);
        self.driver.release(mark);
        status
    }

    fn capacity(&self) -> u64 {
        u64::from(self.driver.config(4)) << 32 | u64::from(self.driver.config(0))
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Bytes that differ everywhere.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let step = |i: usize| (seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64 / 3)) as u8;
    (0..len).map(step).collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
