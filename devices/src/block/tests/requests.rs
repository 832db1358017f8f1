// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each request does.

use super::super::image::Contents;
use super::*;

#[test]
fn what_was_written_is_read_and_is_in_the_file() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        assert_eq!(rig.capacity(), SECTORS, "{disk:?}");
        let data = pattern(1, 5 * 512);
        assert_eq!(rig.write(7, &data), OK, "{disk:?}");
        assert_eq!(rig.read(7, data.len()), (OK, data.clone()), "{disk:?}");
        assert_eq!(rig.read(6, 512).1, vec![0; 512], "{disk:?}");
        assert_eq!(rig.send(FLUSH, 0, &[]), OK, "{disk:?}");
        if disk != Disk::Qcow2 {
            let file = std::fs::read(&rig.path).unwrap();
            assert_eq!(file[7 * 512..12 * 512], data, "{disk:?}");
        }
        let counters = rig.handle.counters();
        assert_eq!(count(&counters.write_bytes), data.len() as u64);
        assert_eq!(count(&counters.read_bytes), data.len() as u64 + 512);
        assert_eq!(count(&counters.flush_count), 1);
    }
}

#[test]
fn how_a_request_is_cut_into_descriptors_means_nothing() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        let data = pattern(2, 1024);
        // The header in three parts, the last with data; data in odd parts.
        let bytes = [&header(OUT, 3)[..], &data].concat();
        let at = rig.driver.put(&bytes);
        let status = rig.driver.put(&[0xaa]);
        let part = |from: u64, to: u64| {
            MockDescriptor::readable(GuestAddress(at.0 + from), (to - from) as u32)
        };
        let end = bytes.len() as u64;
        let chain = [
            part(0, 1),
            part(1, 9),
            part(9, 200),
            part(200, 201),
            part(201, end),
            MockDescriptor::writable(status, 1),
        ];
        let head = rig.driver.add(0, &chain);
        rig.driver.notify(0);
        assert_eq!(rig.wait(0), (head, 1));
        assert_eq!(rig.mem.read_obj::<u8>(status).unwrap(), OK);

        // And back, with the status byte right behind the data in one descriptor.
        let request = rig.driver.put(&header(IN, 3));
        let answer = rig.driver.alloc(1025);
        let chain = [MockDescriptor::readable(request, 16), MockDescriptor::writable(answer, 1025)];
        let head = rig.driver.add(0, &chain);
        rig.driver.notify(0);
        assert_eq!(rig.wait(0), (head, 1025));
        let mut back = vec![0; 1025];
        rig.mem.read_slice(&mut back, answer).unwrap();
        assert_eq!(back[..1024], data);
        assert_eq!(back[1024], OK);
    }
}

#[test]
fn a_request_may_be_larger_than_a_piece() {
    for disk in ALL {
        let mut rig = Rig::new(disk);
        let data = pattern(3, 1 << 20);
        let at = GuestAddress(0x90_0000);
        rig.mem.write_slice(&data, at).unwrap();
        let whole = [MockDescriptor::readable(at, 1 << 20)];
        assert_eq!(rig.send(OUT, 0, &whole), OK, "{disk:?}");
        let to = GuestAddress(0xb0_0000);
        assert_eq!(rig.send(IN, 0, &[MockDescriptor::writable(to, 1 << 20)]), OK, "{disk:?}");
        let mut back = vec![0; data.len()];
        rig.mem.read_slice(&mut back, to).unwrap();
        assert!(back == data, "{disk:?}");
    }
}

#[test]
fn zeroed_ranges_read_as_zero_and_their_neighbours_stay() {
    for disk in ALL {
        for flags in [0, 1] {
            let mut rig = Rig::new(disk);
            let data = pattern(4, 300 * 512);
            assert_eq!(rig.write(0, &data), OK);
            assert_eq!(rig.range(WRITE_ZEROES, 5, 200, flags), OK, "{disk:?}");
            let (status, back) = rig.read(0, data.len());
            assert_eq!(status, OK);
            assert!(back[..5 * 512] == data[..5 * 512], "{disk:?}");
            assert!(back[5 * 512..205 * 512].iter().all(|byte| *byte == 0), "{disk:?}");
            assert!(back[205 * 512..] == data[205 * 512..], "{disk:?}");
        }
    }
}

#[test]
fn a_discard_frees_the_range_in_the_file() {
    use std::os::unix::fs::MetadataExt;
    for disk in [Disk::Calls, Disk::Ring] {
        let mut rig = Rig::new(disk);
        assert_eq!(rig.write(0, &pattern(5, 1 << 20)), OK);
        assert_eq!(rig.send(FLUSH, 0, &[]), OK);
        let before = std::fs::metadata(&rig.path).unwrap();
        assert_eq!(rig.range(DISCARD, 0, 1024, 0), OK);
        let after = std::fs::metadata(&rig.path).unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after.blocks() < before.blocks(), "{disk:?}: {}", after.blocks());
    }
}

#[test]
fn discards_of_any_disk_succeed() {
    for disk in ALL {
        assert_eq!(Rig::new(disk).range(DISCARD, 3, 77, 0), OK, "{disk:?}");
    }
}

#[test]
fn the_id_names_the_file_and_is_cut_to_the_room() {
    let mut rig = Rig::new(Disk::Calls);
    let at = rig.driver.put(&[0xee; 20]);
    assert_eq!(rig.send(GET_ID, 0, &[MockDescriptor::writable(at, 20)]), OK);
    let mut id = [0; 20];
    rig.mem.read_slice(&mut id, at).unwrap();
    assert!(id[0].is_ascii_digit(), "{id:?}");
    assert_eq!(rig.send(GET_ID, 0, &[MockDescriptor::writable(at, 3)]), OK);
    assert_eq!(rig.send(GET_ID, 0, &[]), OK);
}

#[test]
fn a_driver_without_flushes_has_its_writes_made_durable() {
    for disk in ALL {
        let setup = Setup { features: !protocol::feature::FLUSH, ..Setup::new(disk) };
        let mut rig = setup.start();
        assert_eq!(rig.write(0, &pattern(6, 512)), OK);
        assert_eq!(rig.read(0, 512), (OK, pattern(6, 512)));
    }
}

#[test]
fn what_is_flushed_is_in_a_qcow2_image_though_its_monitor_is_killed() {
    let mut rig = Rig::new(Disk::Qcow2);
    let data = pattern(7, 70 * 512);
    assert_eq!(rig.write(9, &data), OK);
    assert_eq!(rig.send(FLUSH, 0, &[]), OK);
    // What another process finds after SIGKILL, which runs no destructor.
    let copy = rig.path.with_extension("copy");
    std::fs::copy(&rig.path, &copy).unwrap();
    let image = image(Disk::Qcow2, &copy, true).unwrap();
    let Contents::Qcow2(access) = image.contents else { panic!("not qcow2") };
    let mut back = vec![0; data.len()];
    access.read(&mut back[..], 9 * 512).unwrap();
    assert!(back == data);
}

#[test]
fn many_requests_are_under_way_at_once_on_several_queues() {
    let mut rig = Setup { queues: 3, ..Setup::new(Disk::Ring) }.start();
    let data = GuestAddress(0x90_0000);
    rig.mem.write_slice(&pattern(8, 60 * 4096), data).unwrap();
    let mut statuses = Vec::new();
    for queue in 0..3u16 {
        for nth in 0..20u64 {
            let header = rig.driver.put(&header(OUT, (u64::from(queue) * 20 + nth) * 8));
            let status = rig.driver.put(&[0xaa]);
            let from = GuestAddress(data.0 + (u64::from(queue) * 20 + nth) * 4096);
            let chain = [
                MockDescriptor::readable(header, 16),
                MockDescriptor::readable(from, 4096),
                MockDescriptor::writable(status, 1),
            ];
            rig.driver.add(queue, &chain);
            statuses.push(status);
        }
        rig.driver.notify(queue);
    }
    for queue in 0..3 {
        for _ in 0..20 {
            rig.wait(queue);
        }
    }
    for status in statuses {
        assert_eq!(rig.mem.read_obj::<u8>(status).unwrap(), OK);
    }
    let file = std::fs::read(&rig.path).unwrap();
    assert!(file[..60 * 4096] == pattern(8, 60 * 4096));
}

/// Nothing wakes the device again: a request is one turn of its loop.
#[test]
fn a_request_that_is_done_at_once_takes_one_round() {
    for disk in [Disk::Calls, Disk::Qcow2] {
        let mut rig = Rig::new(disk);
        rig.driver.run();
        for _ in 0..3 {
            let at = rig.driver.alloc(4096);
            let (head, _) = rig.add(IN, 0, &[MockDescriptor::writable(at, 4096)]);
            rig.driver.notify(0);
            assert_eq!(rig.driver.run(), 1, "{disk:?}");
            assert_eq!(rig.driver.used(0), Some((head, 4097)));
        }
    }
}
