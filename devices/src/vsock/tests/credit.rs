// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Neither side receives more than it has room for, and no byte is lost.

use super::*;

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    let data = pattern(1, 200_000);
    let (mut sent, mut got) = (0, Vec::new());
    let mut taken = 0u32;
    while got.len() < data.len() {
        if sent < data.len() {
            match program.write(&data[sent..]) {
                Ok(len) => sent += len,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        rig.host_event();
        let mut asked = false;
        while let Some(packet) = rig.packet() {
            match packet.op() {
                Op::Rw => got.extend(packet.data),
                Op::CreditRequest => asked = true,
                other => panic!("{other:?}"),
            }
        }
        assert!(got.len() - taken as usize <= ROOM as usize);
        if asked || got.len() - taken as usize == ROOM as usize {
            taken = u32::try_from(got.len()).unwrap();
            rig.send(
                PacketHeader { fwd_cnt: taken.into(), ..header(Op::CreditUpdate, host, 5) },
                &[],
            );
        }
    }
    assert!(got == data);
}

#[test]
fn a_guest_without_room_is_asked_once_and_served_when_it_has_some() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    rig.send(PacketHeader { buf_alloc: 0.into(), ..header(Op::CreditUpdate, host, 5) }, &[]);
    program.write_all(b"wait").unwrap();
    rig.host_event();
    rig.expect(Op::CreditRequest);
    rig.host_event();
    assert!(rig.packet().is_none());
    rig.send(PacketHeader { buf_alloc: 2.into(), ..header(Op::CreditUpdate, host, 5) }, &[]);
    assert_eq!(rig.expect(Op::Rw).data, b"wa");
    rig.expect(Op::CreditRequest);
    rig.send(
        PacketHeader {
            buf_alloc: 2.into(),
            fwd_cnt: 2.into(),
            ..header(Op::CreditUpdate, host, 5)
        },
        &[],
    );
    assert_eq!(rig.expect(Op::Rw).data, b"it");
}

#[test]
fn what_a_program_does_not_read_is_held_up_to_the_credit_and_then_told() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    let room = super::super::credit::BUFFER as usize;
    // Until neither the socket nor the device takes more.
    let (mut sent, mut told) = (0, 0usize);
    for _ in 0..200 {
        let part = (room - (sent - told)).min(64 << 10);
        if part == 0 {
            break;
        }
        rig.data(host, 5, &pattern(sent, part));
        sent += part;
        while let Some(packet) = rig.packet() {
            assert_eq!(packet.op(), Op::CreditUpdate);
            told = packet.header.fwd_cnt.get() as usize;
        }
    }
    assert_eq!(sent - told, room, "the device took more than its credit");
    // Now the program reads, and the guest is notified of room.
    let mut got = Vec::new();
    loop {
        let part = read_now(&mut program);
        if part.is_empty() {
            break;
        }
        got.extend(part);
        rig.host_event();
    }
    assert_eq!(got.len(), sent);
    let mut last = told;
    while let Some(packet) = rig.packet() {
        last = packet.header.fwd_cnt.get() as usize;
    }
    // A little room is not worth a packet.
    assert!(sent - last < room / 4, "{last} of {sent}");
}

#[test]
fn a_read_of_the_program_wakes_the_device_only_while_data_is_held() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    let events = rig.device.lock().sources().unwrap().remove(0);
    let woken = || {
        let mut fds = [PollFd::new(&events.fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    };
    rig.host_event();
    rig.data(host, 5, b"fits");
    assert_eq!(read_now(&mut program), b"fits");
    assert!(!woken(), "there was nothing to write");
    // The socket's own buffer is smaller than the credit.
    let held = |rig: &Rig| rig.device.lock().buffered() > 0;
    while !held(&rig) {
        rig.data(host, 5, &pattern(0, 32 << 10));
    }
    while held(&rig) {
        assert!(!read_now(&mut program).is_empty());
        assert!(woken(), "held data has room, and no event tells");
        rig.host_event();
    }
    rig.host_event();
    read_now(&mut program);
    assert!(!woken(), "there is nothing left to write");
}

#[test]
fn more_than_the_credit_ends_the_connection() {
    let mut rig = Rig::new();
    let (program, host) = rig.connected(5);
    let mut reset = false;
    for seed in 0..200 {
        rig.data(host, 5, &pattern(seed, 64 << 10));
        while let Some(packet) = rig.packet() {
            reset |= packet.op() == Op::Reset;
        }
        if reset {
            break;
        }
    }
    assert!(reset, "a guest that ignores its credit was not stopped");
    assert_eq!(rig.held(), (0, 0, 0));
    drop(program);
}

#[test]
fn a_credit_request_is_answered() {
    let mut rig = Rig::new();
    let (_program, host) = rig.connected(5);
    rig.op(Op::CreditRequest, host, 5);
    let update = rig.expect(Op::CreditUpdate);
    assert_eq!(update.header.buf_alloc.get(), super::super::credit::BUFFER);
}
