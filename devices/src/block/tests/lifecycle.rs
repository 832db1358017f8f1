// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks, new images, limits, resets.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::{BucketConfig, BucketUpdate};

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    for disk in [Disk::Ring, Disk::Qcow2] {
        let path = dir.path().join(format!("{disk:?}"));
        create(disk, &path, SECTORS);
        let writer = image(disk, &path, false).unwrap();
        for read_only in [false, true] {
            let refused = image(disk, &path, read_only).unwrap_err();
            assert!(matches!(refused, ImageError::Locked { .. }), "{refused}");
        }
        drop(writer);
        let readers = [image(disk, &path, true).unwrap(), image(disk, &path, true).unwrap()];
        assert!(matches!(image(disk, &path, false), Err(ImageError::Locked { read_only: false })));
        drop(readers);
        image(disk, &path, false).unwrap();
    }
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        DiskImage::raw(File::open(dir.path()).unwrap(), true),
        Err(ImageError::NotADisk)
    ));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(DiskImage::raw(null, true), Err(ImageError::NotADisk)));
    let text = dir.path().join("text");
    std::fs::write(&text, "some text, not an image").unwrap();
    let refused = image(Disk::Qcow2, &text, true).unwrap_err();
    assert!(matches!(refused, ImageError::Qcow2(_)), "{refused}");
    // Empty, and not a multiple of a sector.
    assert_eq!(image(Disk::Ring, &text, true).unwrap().sectors(), 0);
    std::fs::write(&text, [0; 1300]).unwrap();
    assert_eq!(image(Disk::Ring, &text, true).unwrap().sectors(), 2);
}

#[test]
fn a_backing_file_is_followed_only_if_asked() {
    use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base"), dir.path().join("top"));
    std::fs::write(&base, pattern(1, 64 << 10)).unwrap();
    let file = StorageCreateOptions::new().filename(&path);
    let file = imago::file::File::create_open(file).unwrap();
    imago::qcow2::Qcow2::<imago::file::File>::create_builder(file)
        .size(64 << 10)
        .backing("base".into(), "raw".into())
        .create()
        .unwrap();
    assert!(matches!(image(Disk::Qcow2, &path, true), Err(ImageError::Qcow2(_))));
    let followed = DiskImage::qcow2(open(&path, true), &path, true, true).unwrap();
    let image::Contents::Qcow2(access) = followed.contents else { panic!("raw") };
    let mut back = vec![0; 64 << 10];
    access.read(&mut back[..], 0).unwrap();
    assert!(back == pattern(1, 64 << 10));
}

#[test]
fn a_new_image_is_there_with_its_size_and_the_driver_is_told() {
    for disk in [Disk::Calls, Disk::Ring] {
        let mut rig = Rig::new(disk);
        assert_eq!(rig.write(0, &pattern(1, 512)), OK);
        let other = rig.path.with_extension("other");
        create(disk, &other, 2 * SECTORS);
        std::fs::write(rig.path.with_extension("small"), [7; 4096]).unwrap();
        rig.driver.acknowledge();
        rig.handle.replace(open(&other, false)).unwrap();
        rig.driver.transport().process_queue(0);
        assert_eq!(rig.capacity(), 2 * SECTORS);
        assert_eq!(rig.driver.acknowledge() & 2, 2, "no configuration interrupt");
        assert_eq!(rig.read(0, 512), (OK, vec![0; 512]));
        assert_eq!(rig.write(2 * SECTORS - 1, &pattern(2, 512)), OK);
        // The first image is free again.
        image(disk, &rig.path, false).unwrap();
        // A smaller one.
        rig.handle.replace(open(&rig.path.with_extension("small"), false)).unwrap();
        assert_eq!(rig.capacity(), 8);
        assert_eq!(rig.write(8, &[1; 512]), IOERR);
        assert_eq!(rig.read(0, 512), (OK, vec![7; 512]));
        assert_eq!(count(&rig.handle.counters().update_count), 2);
    }
}

#[test]
fn the_same_file_again_is_looked_at_anew() {
    let mut rig = Rig::new(Disk::Ring);
    open(&rig.path, false).set_len(2 * SECTORS * 512).unwrap();
    rig.handle.replace(open(&rig.path, false)).unwrap();
    rig.driver.transport().process_queue(0);
    assert_eq!(rig.capacity(), 2 * SECTORS);
    assert_eq!(rig.write(SECTORS, &pattern(2, 512)), OK);
    // It is locked as before.
    assert!(matches!(image(Disk::Ring, &rig.path, false), Err(ImageError::Locked { .. })));
}

#[test]
fn an_image_that_cannot_be_used_leaves_the_old_one() {
    let mut rig = Rig::new(Disk::Ring);
    let refused = rig.handle.replace(File::open("/dev/null").unwrap()).unwrap_err();
    assert!(matches!(refused, ReplaceError::Image(ImageError::NotADisk)));
    let taken = rig.path.with_extension("taken");
    create(Disk::Ring, &taken, 8);
    let _owner = image(Disk::Ring, &taken, false).unwrap();
    assert!(rig.handle.replace(open(&taken, false)).is_err());
    assert_eq!(count(&rig.handle.counters().update_fails), 2);
    assert_eq!(rig.write(0, &[3; 512]), OK);

    let mut rig = Rig::new(Disk::Qcow2);
    assert!(matches!(rig.handle.replace(open(&taken, true)), Err(ReplaceError::NotRaw)));
    assert_eq!(rig.write(0, &[3; 512]), OK);
}

#[test]
fn a_disk_that_waits_for_its_driver_takes_a_new_image_too() {
    let mut rig = Rig::new(Disk::Ring);
    rig.driver.reset();
    let other = rig.path.with_extension("other");
    create(Disk::Ring, &other, 16);
    rig.handle.replace(open(&other, false)).unwrap();
    assert_eq!(rig.capacity(), 16);
    rig.driver.probe(u64::MAX, 1);
    assert_eq!(rig.write(15, &[3; 512]), OK);
    assert_eq!(std::fs::read(&other).unwrap()[15 * 512], 3);
}

#[test]
fn the_rate_limit_puts_requests_off_until_it_is_lifted() {
    let day = Duration::from_secs(86_400);
    let bucket = BucketConfig { size: 1024, refill: day, one_time_burst: 0 };
    for (bytes, ops) in [(Some(bucket), None), (None, Some(BucketConfig { size: 2, ..bucket }))] {
        let limiter = RateLimiter::new(bytes, ops, Instant::now());
        let mut rig = Setup { limiter, ..Setup::new(Disk::Ring) }.start();
        assert_eq!(rig.write(0, &pattern(1, 512)), OK);
        assert_eq!(rig.write(1, &pattern(1, 512)), OK);
        let at = rig.driver.alloc(512);
        let (head, _) = rig.add(IN, 0, &[MockDescriptor::writable(at, 512)]);
        rig.driver.notify(0);
        rig.driver.run();
        assert_eq!(rig.driver.used(0), None);
        assert_eq!(count(&rig.handle.counters().rate_limiter_throttled_events), 1);
        // Each event in between leads to one round, not to a series of rounds.
        rig.driver.notify(0);
        assert_eq!(rig.driver.run(), 1);
        let none = BucketUpdate::Set(BucketConfig { size: 0, ..bucket });
        rig.handle.limit(none, none);
        assert_eq!(rig.wait(0), (head, 513));
    }
}

#[test]
fn a_request_put_off_goes_ahead_when_the_timer_says_so() {
    let millis = Duration::from_millis(20);
    let bucket = BucketConfig { size: 512, refill: millis, one_time_burst: 0 };
    let limiter = RateLimiter::new(Some(bucket), None, Instant::now());
    let mut rig = Setup { limiter, ..Setup::new(Disk::Ring) }.start();
    for sector in 0..5 {
        assert_eq!(rig.write(sector, &pattern(1, 512)), OK);
    }
}

#[test]
fn a_reset_waits_for_requests_under_way_and_leaves_a_disk_as_new() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        for round in 0..10u8 {
            let at = rig.driver.put(&[round; 4096]);
            for sector in 0..15 {
                rig.add(OUT, sector * 8, &[MockDescriptor::readable(at, 4096)]);
            }
            rig.driver.notify(0);
            // One round at most, then the driver gives up.
            rig.driver.transport().process_queue(0);
            rig.driver.reset();
            // The memory is the driver's again: nothing of the device's may still read it.
            rig.mem.write_slice(&[0xff; 4096], at).unwrap();
            rig.driver.probe(u64::MAX, 1);
            let (status, back) = rig.read(0, 4096);
            assert_eq!(status, OK);
            assert!(back.iter().all(|byte| *byte != 0xff), "{disk:?}");
        }
    }
}
