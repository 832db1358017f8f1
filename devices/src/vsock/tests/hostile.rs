// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! False packets, floods, and leaks.

use proptest::prelude::*;

use super::*;
use crate::virtio::{Deadline, Progress, VirtioDevice};

#[test]
fn packets_for_connections_that_are_not_there_are_answered_with_a_reset() {
    let mut rig = Rig::new();
    for op in
        [Op::Response, Op::Rw, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest, Op::Unknown(9)]
    {
        rig.op(op, 1, 2);
        let reset = rig.expect(Op::Reset);
        assert_eq!((reset.header.src_port.get(), reset.header.dst_port.get()), (1, 2));
    }
    // A reset is not answered, or two devices would never stop.
    rig.op(Op::Reset, 1, 2);
    assert!(rig.packet().is_none());
}

#[test]
fn headers_that_lie_end_the_connection_and_nothing_else() {
    let invalid = [
        PacketHeader { len: 5000.into(), ..header(Op::Rw, 0, 5) },
        PacketHeader { len: u32::MAX.into(), ..header(Op::Rw, 0, 5) },
        PacketHeader { kind: 2.into(), ..header(Op::Rw, 0, 5) },
        PacketHeader { dst_cid: 99.into(), ..header(Op::Rw, 0, 5) },
        header(Op::Request, 0, 5),
        header(Op::Response, 0, 5),
        header(Op::Unknown(77), 0, 5),
    ];
    for packet in invalid {
        let mut rig = Rig::new();
        let (mut other, other_port) = rig.connected(6);
        let (_program, host) = rig.connected(5);
        rig.send(PacketHeader { dst_port: host.into(), ..packet }, b"data");
        rig.expect(Op::Reset);
        assert_eq!(rig.held().0, 1);
        rig.data(other_port, 6, b"alive");
        assert_eq!(read_now(&mut other), b"alive");
    }
}

#[test]
fn a_sender_that_is_not_the_guest_is_not_answered() {
    let mut rig = Rig::new();
    let (_program, host) = rig.connected(5);
    rig.send(PacketHeader { src_cid: 4.into(), ..header(Op::Reset, host, 5) }, &[]);
    assert!(rig.packet().is_none());
    assert_eq!(rig.held().0, 1);
}

#[test]
fn buffers_that_are_no_packets_come_back() {
    let mut rig = Rig::new();
    let at = rig.driver.put(&[0xff; 64]);
    for chain in [
        vec![MockDescriptor::readable(at, 43)],
        vec![MockDescriptor::writable(at, 64)],
        vec![MockDescriptor::readable(GuestAddress(u64::MAX - 8), 64)],
    ] {
        assert_eq!(rig.driver.send(TX, &chain), 0);
    }
    assert_eq!(count(&rig.handle.counters().tx_queue_event_fails), 3);
    rig.connected(5);
}

#[test]
fn buffers_without_room_for_a_packet_come_back() {
    let mut rig = Rig::new();
    rig.driver.reset();
    rig.driver.probe(u64::MAX, 3);
    let at = rig.driver.alloc(4096);
    // A loop of descriptors, and a table longer than the queue.
    let endless = MockDescriptor { flags: 3, next: 0, ..MockDescriptor::writable(at, 64) };
    let long = vec![MockDescriptor::writable(at, 8); 257];
    let table = rig.driver.put_table(&long);
    let mut bad: Vec<u16> = [
        vec![MockDescriptor::writable(at, 44)],
        vec![MockDescriptor::writable(at, 3)],
        vec![MockDescriptor::writable(at, 0)],
        vec![MockDescriptor::readable(at, 64)],
        vec![MockDescriptor::writable(at, 44), MockDescriptor::readable(at, 64)],
        vec![MockDescriptor::writable(at, 64), MockDescriptor::writable(GuestAddress(32 << 20), 1)],
        vec![table],
    ]
    .iter()
    .map(|chain| rig.driver.add(RX, chain))
    .collect();
    let looped = rig.driver.add(RX, &[MockDescriptor::writable(at, 64)]);
    rig.driver.write_descriptor(RX, looped, MockDescriptor { next: looped, ..endless });
    bad.push(looped);
    let good = rig.driver.add(RX, &[MockDescriptor::writable(at, 45)]);
    let fails = bad.len() as u64;
    rig.op(Op::CreditRequest, 1, 2);
    let used: Vec<_> = std::iter::from_fn(|| rig.driver.used(RX)).collect();
    let expected: Vec<_> = bad.into_iter().map(|head| (head, 0)).chain([(good, 44)]).collect();
    assert_eq!(used, expected);
    assert_eq!(count(&rig.handle.counters().rx_queue_event_fails), fails);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn a_reset_leaves_its_connections_to_be_closed_without_the_lock() {
    let mut rig = Rig::new();
    let (mut program, _) = rig.connected(5);
    program.set_nonblocking(true).unwrap();
    let mut device = rig.device.lock();
    device.reset();
    let open = program.read(&mut [0; 8]).unwrap_err();
    assert_eq!(open.kind(), ErrorKind::WouldBlock, "closed under the lock");
    drop(device.take_remains().unwrap());
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn thousands_of_connections_opened_and_dropped_leave_nothing_behind() {
    let mut rig = Rig::new();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    for round in 0..3000u32 {
        let mut program = UnixStream::connect(&rig.path).unwrap();
        match round % 3 {
            0 => drop(program),
            1 => {
                program.write_all(b"nonsense\n").unwrap();
            }
            _ => {
                program.write_all(b"CONNECT 7\n").unwrap();
                rig.host_event();
                let host = rig.expect(Op::Request).header.src_port.get();
                rig.op(Op::Response, host, 7);
                drop(program);
                rig.host_event();
                rig.expect(Op::Shutdown);
                rig.op(Op::Reset, host, 7);
            }
        }
        rig.host_event();
    }
    assert_eq!(rig.held(), (0, 0, 0));
    // Other tests of this process open descriptors too, but not hundreds.
    assert!(fds() < before + 200);
}

#[test]
fn a_guest_that_never_answers_keeps_no_more_than_the_limit() {
    let mut rig = Rig::new();
    let mut programs = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 50 {
        let mut program = UnixStream::connect(&rig.path).unwrap();
        let _ = program.write_all(b"CONNECT 7\n");
        programs.push(program);
        rig.host_event();
    }
    assert_eq!(rig.held().0, MAX_CONNECTIONS);
    // Those beyond it find their connection closed.
    let last = programs.last_mut().unwrap();
    assert!(matches!(last.read(&mut [0; 4]), Ok(0) | Err(_)));
    // And when programs go, others have room.
    programs.clear();
    rig.host_event();
    while rig.packet().is_some() {}
    assert_eq!(rig.held(), (0, 0, 0));
    rig.connected(8);
}

#[test]
fn programs_that_say_nothing_keep_no_others_out() {
    let mut rig = Rig::new();
    let mut silent: Vec<UnixStream> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let program = UnixStream::connect(&rig.path).unwrap();
            rig.host_event();
            program
        })
        .collect();
    rig.connected(8);
    // The one that waited for longest has given its place.
    assert_eq!(silent[0].read(&mut [0; 4]).unwrap(), 0);
    silent[1].set_nonblocking(true).unwrap();
    assert_eq!(silent[1].read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn programs_that_come_and_go_leave_nothing_for_a_guest_without_buffers() {
    let mut rig = Rig::new();
    rig.driver.reset();
    rig.driver.probe(u64::MAX, 3);
    for _ in 0..600 {
        let mut program = UnixStream::connect(&rig.path).unwrap();
        program.write_all(b"CONNECT 7\n").unwrap();
        rig.host_event();
        drop(program);
        rig.host_event();
    }
    assert_eq!(rig.held(), (0, 0, 0));
}

#[test]
fn answers_without_buffers_hold_the_guest_back_and_are_not_lost() {
    let mut rig = Rig::new();
    rig.driver.reset();
    rig.driver.probe(u64::MAX, 3);
    let at = rig.driver.put(header(Op::Rw, 1, 2).as_bytes());
    let mut taken = 0;
    // No receive buffer: the device eventually stops taking packets.
    for _ in 0..20 {
        while rig.driver.room(TX) > 0 {
            rig.driver.add(TX, &[MockDescriptor::readable(at, 44)]);
        }
        rig.driver.notify(TX);
        rig.driver.run();
        let more = std::iter::from_fn(|| rig.driver.used(TX)).count();
        taken += more;
        if more == 0 {
            break;
        }
    }
    assert!(taken < 1000, "{taken} packets were taken");
    let to = rig.driver.alloc(64);
    let mut answers = 0;
    while answers < taken + 64 {
        rig.driver.add(RX, &[MockDescriptor::writable(to, 64)]);
        rig.driver.notify(RX);
        rig.driver.run();
        assert!(rig.driver.used(RX).is_some(), "after {answers} of {taken}");
        answers += 1;
        let _ = std::iter::from_fn(|| rig.driver.used(TX)).count();
    }
}

#[test]
fn a_flood_is_taken_in_rounds() {
    let mut rig = Rig::new();
    let at = rig.driver.put(header(Op::Reset, 1, 2).as_bytes());
    for _ in 0..60 {
        rig.driver.add(TX, &[MockDescriptor::readable(at, 44)]);
    }
    let mut deadline = Deadline::of_work(20_000);
    let progress = rig.device.lock().process(TX, &mut deadline).unwrap();
    assert_eq!(progress, Progress::More);
    assert!(deadline.spent() < 25_000);
    rig.driver.notify(TX);
    rig.driver.run();
    assert_eq!(std::iter::from_fn(|| rig.driver.used(TX)).count(), 60);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any packets, the device answers the next honest connection.
    #[test]
    fn no_packet_is_too_much(
        packets in prop::collection::vec(
            (0u16..10, 0u32..4, 0u32..4, any::<u32>(), any::<[u32; 3]>(), 0usize..100), 1..60),
    ) {
        let mut rig = Rig::new();
        let (_program, host) = rig.connected(1);
        for (op, port, guest, len, [flags, buffer, taken], data) in packets {
            let port = if port == 0 { host } else { port };
            let len = if len % 2 == 0 { data as u32 } else { len };
            let header = PacketHeader {
                len: len.into(),
                flags: flags.into(),
                buf_alloc: buffer.into(),
                fwd_cnt: taken.into(),
                ..header(Op::from(op), port, guest)
            };
            rig.send(header, &vec![7; data]);
            while rig.packet().is_some() {}
        }
        prop_assert!(!rig.driver.needs_reset());
        let (mut program, host) = rig.connected(50);
        rig.data(host, 50, b"alive");
        prop_assert_eq!(read_now(&mut program), b"alive");
    }
}
