// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Misbehaving guests and failing hosts: each request completes, and the disk survives.

use super::*;
use crate::virtio::{Deadline, Progress, VirtioDevice};

#[test]
fn sectors_beyond_the_end_are_an_error() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(rig.write(sector, &[1; 1024]), IOERR, "{disk:?} {sector}");
            assert_eq!(rig.read(sector, 1024).0, IOERR, "{disk:?} {sector}");
            assert_eq!(rig.range(DISCARD, sector, 2, 0), IOERR);
            assert_eq!(rig.range(WRITE_ZEROES, sector, 2, 0), IOERR);
        }
        assert_eq!(rig.range(DISCARD, 0, u32::MAX, 0), IOERR);
        assert_eq!(rig.write(SECTORS - 2, &[1; 1024]), OK);
        if disk != Disk::Qcow2 {
            assert_eq!(std::fs::metadata(&rig.path).unwrap().len(), SECTORS * 512);
        }
    }
}

#[test]
fn data_that_is_no_whole_sector_is_an_error() {
    let mut rig = Rig::new(Disk::Ring);
    assert_eq!(rig.write(0, &[1; 511]), IOERR);
    assert_eq!(rig.read(0, 513).0, IOERR);
    assert_eq!(rig.read(0, 0).0, OK);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    for disk in ALL {
        let mut rig = Setup { read_only: true, ..Setup::new(disk) }.start();
        let before = std::fs::read(&rig.path).unwrap();
        assert_eq!(rig.write(0, &[1; 512]), IOERR);
        assert_eq!(rig.range(DISCARD, 0, 8, 0), IOERR);
        assert_eq!(rig.range(WRITE_ZEROES, 0, 8, 0), IOERR);
        assert_eq!(rig.read(0, 512), (OK, vec![0; 512]));
        assert_eq!(std::fs::read(&rig.path).unwrap(), before);
    }
}

#[test]
fn unknown_types_and_flags_are_unsupported() {
    let mut rig = Rig::new(Disk::Ring);
    for kind in [2, 3, 5, 14, 99, u32::MAX] {
        assert_eq!(rig.send(kind, 0, &[]), UNSUPPORTED, "{kind}");
    }
    assert_eq!(rig.range(DISCARD, 0, 8, 1), UNSUPPORTED);
    assert_eq!(rig.range(WRITE_ZEROES, 0, 8, 2), UNSUPPORTED);
}

#[test]
fn buffers_that_are_no_requests_come_back() {
    let mut rig = Rig::new(Disk::Ring);
    let header = rig.driver.put(&header(IN, 0));
    let status = rig.driver.put(&[0xaa]);
    // No status byte; no descriptor that the device may read; outside RAM; a cut header.
    let outside = GuestAddress(RAM as u64);
    let chains = [
        vec![MockDescriptor::readable(header, 16)],
        vec![MockDescriptor::writable(outside, 512)],
        vec![
            MockDescriptor::readable(GuestAddress(u64::MAX - 8), 16),
            MockDescriptor::writable(status, 1),
        ],
    ];
    for chain in chains {
        let head = rig.driver.add(0, &chain);
        rig.driver.notify(0);
        assert_eq!(rig.wait(0), (head, 0));
    }
    let head = rig
        .driver
        .add(0, &[MockDescriptor::readable(header, 15), MockDescriptor::writable(status, 1)]);
    rig.driver.notify(0);
    assert_eq!(rig.wait(0), (head, 1));
    assert_eq!(rig.mem.read_obj::<u8>(status).unwrap(), IOERR);
    let head = rig.driver.add(0, &[MockDescriptor::writable(status, 1)]);
    rig.driver.notify(0);
    assert_eq!(rig.wait(0), (head, 1));
    assert_eq!(rig.mem.read_obj::<u8>(status).unwrap(), IOERR);
    assert!(!rig.driver.needs_reset());
    assert_eq!(rig.read(0, 512).0, OK);
}

#[test]
fn a_request_of_many_descriptors_over_the_same_page_is_served() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        let page = rig.driver.put(&pattern(1, 4096));
        let data = vec![MockDescriptor::readable(page, 4096); 60];
        assert_eq!(rig.send(OUT, 0, &data), OK, "{disk:?}");
        assert_eq!(rig.read(59 * 8, 4096).1, pattern(1, 4096), "{disk:?}");
    }
}

#[test]
fn a_round_ends_when_its_work_is_done_and_the_rest_is_resumed() {
    let mut rig = Rig::new(Disk::Calls);
    let at = GuestAddress(0x90_0000);
    for _ in 0..20 {
        rig.add(IN, 0, &[MockDescriptor::writable(at, 1 << 20)]);
    }
    let mut deadline = Deadline::of_work(2 << 20);
    let progress = rig.device.lock().process(0, &mut deadline).unwrap();
    assert_eq!(progress, Progress::More);
    assert!(deadline.spent() < 3 << 20, "{}", deadline.spent());
    rig.driver.notify(0);
    for _ in 0..20 {
        rig.wait(0);
    }
}

#[test]
fn an_image_that_was_cut_off_gives_errors_and_no_more() {
    for disk in [Disk::Calls, Disk::Ring] {
        let mut rig = Rig::new(disk);
        open(&rig.path, false).set_len(1024).unwrap();
        assert_eq!(rig.read(0, 512).0, OK, "{disk:?}");
        assert_eq!(rig.read(2, 512).0, IOERR, "{disk:?}");
        assert_eq!(count(&rig.handle.counters().execute_fails), 1);
        // A deleted file stays while it is open.
        std::fs::remove_file(&rig.path).unwrap();
        assert_eq!(rig.read(0, 512).0, OK, "{disk:?}");
    }
}

#[test]
fn a_disk_without_sectors_answers_every_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    create(Disk::Ring, &path, 0);
    for engine in [Disk::Calls, Disk::Ring] {
        let mut rig = Rig::new(engine);
        rig.handle.replace(open(&path, false)).unwrap();
        rig.driver.transport().process_queue(0);
        assert_eq!(rig.read(0, 512).0, IOERR, "{engine:?}");
        assert_eq!(rig.write(0, &[1; 512]), IOERR, "{engine:?}");
        assert_eq!(rig.range(DISCARD, 0, 8, 0), IOERR, "{engine:?}");
        assert_eq!(rig.send(FLUSH, 0, &[]), OK, "{engine:?}");
        drop(rig);
    }
}
