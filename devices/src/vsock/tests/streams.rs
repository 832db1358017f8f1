// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections in both directions, data, ends.

use std::net::Shutdown;

use super::*;
use crate::virtio::{Deadline, Progress, VirtioDevice};

#[test]
fn configuration_tells_the_guests_address() {
    let rig = Rig::new();
    assert_eq!((rig.driver.config(0), rig.driver.config(4)), (3, 0));
}

#[test]
fn a_host_program_reaches_a_port_of_the_guest() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(1234);
    program.write_all(b"to the guest").unwrap();
    rig.host_event();
    let packet = rig.expect(Op::Rw);
    assert_eq!(packet.data, b"to the guest");
    assert_eq!((packet.header.src_port.get(), packet.header.dst_port.get()), (host, 1234));
    rig.data(host, 1234, b"to the host");
    assert_eq!(read_now(&mut program), b"to the host");
    assert_eq!(rig.held().0, 1);
}

#[test]
fn bytes_right_behind_the_greeting_are_the_guests() {
    let mut rig = Rig::new();
    let mut program = UnixStream::connect(&rig.path).unwrap();
    program.write_all(b"CONNECT 5\nhello").unwrap();
    rig.host_event();
    let host = rig.expect(Op::Request).header.src_port.get();
    assert!(rig.packet().is_none(), "data before the guest has accepted");
    rig.op(Op::Response, host, 5);
    assert_eq!(rig.expect(Op::Rw).data, b"hello");
}

#[test]
fn the_guest_reaches_a_host_program_by_its_port() {
    let mut rig = Rig::new();
    let service = UnixListener::bind(format!("{}_77", rig.path.display())).unwrap();
    rig.op(Op::Request, 77, 4000);
    let response = rig.expect(Op::Response);
    assert!(response.header.buf_alloc.get() >= 64 << 10);
    let (mut program, _) = service.accept().unwrap();
    rig.data(77, 4000, b"hello");
    program.set_nonblocking(true).unwrap();
    assert_eq!(read_now(&mut program), b"hello");
    program.write_all(b"welcome").unwrap();
    rig.host_event();
    assert_eq!(rig.expect(Op::Rw).data, b"welcome");
}

#[test]
fn a_port_without_a_listener_is_refused() {
    let mut rig = Rig::new();
    rig.op(Op::Request, 78, 4000);
    rig.expect(Op::Reset);
    // A path longer than a socket's can be has no listener, either.
    assert_eq!(rig.held(), (0, 0, 0));
}

#[test]
fn a_guest_that_refuses_closes_the_programs_connection() {
    let mut rig = Rig::new();
    let mut program = UnixStream::connect(&rig.path).unwrap();
    program.write_all(b"CONNECT 9\n").unwrap();
    rig.host_event();
    let host = rig.expect(Op::Request).header.src_port.get();
    rig.op(Op::Reset, host, 9);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(rig.held(), (0, 0, 0));
}

#[test]
fn an_end_of_the_guest_leaves_no_event_behind() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    rig.send(PacketHeader { flags: shutdown::SEND.into(), ..header(Op::Shutdown, host, 5) }, &[]);
    let mut end = [0];
    assert_eq!(program.read(&mut end).unwrap(), 0);
    for _ in 0..2 {
        let mut deadline = Deadline::of_work(100 * Deadline::COMMAND);
        let progress = rig.device.lock().process(RX, &mut deadline).unwrap();
        assert_eq!(progress, Progress::Done);
    }
}

/// A read that ends early, and one that is as long as the guest has room, leave nothing behind.
#[test]
fn all_that_a_program_has_sent_arrives_by_one_event() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    let mut rig = Rig::new();
    let (mut program, _) = rig.connected(5);
    program.write_all(&pattern(1, 30_000)).unwrap();
    // A descriptor passed along ends the read that finds it.
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = std::io::stdin();
    let passed = [std::os::fd::AsFd::as_fd(&passed)];
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
    let slice = [std::io::IoSlice::new(b"with a descriptor")];
    sendmsg(&program, &slice, &mut control, SendFlags::empty()).unwrap();
    program.write_all(b"the end").unwrap();
    rig.host_event();
    let all: Vec<u8> = std::iter::from_fn(|| rig.packet()).flat_map(|packet| packet.data).collect();
    let sent = [&pattern(1, 30_000)[..], b"with a descriptor", b"the end"].concat();
    assert!(all == sent, "{} of {} bytes", all.len(), sent.len());
}

#[test]
fn each_direction_ends_by_itself() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    // The program has sent everything, and still reads.
    program.write_all(b"last").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    rig.host_event();
    assert_eq!(rig.expect(Op::Rw).data, b"last");
    assert_eq!(rig.expect(Op::Shutdown).header.flags.get(), shutdown::SEND);
    rig.data(host, 5, b"answer");
    assert_eq!(read_now(&mut program), b"answer");
    // Now the guest has sent everything.
    rig.send(PacketHeader { flags: shutdown::SEND.into(), ..header(Op::Shutdown, host, 5) }, &[]);
    program.set_nonblocking(false).unwrap();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_guest_that_closes_is_reset_after_its_data_was_written() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    rig.data(host, 5, &pattern(1, 1000));
    rig.send(PacketHeader { flags: shutdown::BOTH.into(), ..header(Op::Shutdown, host, 5) }, &[]);
    rig.expect(Op::Reset);
    assert_eq!(read_now(&mut program), pattern(1, 1000));
    assert_eq!(rig.held(), (0, 0, 0));
}

#[test]
fn a_program_that_goes_away_is_told_to_the_guest_after_its_data() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    program.write_all(&pattern(2, 6000)).unwrap();
    drop(program);
    rig.host_event();
    let mut data = rig.expect(Op::Rw).data;
    data.extend(rig.expect(Op::Rw).data);
    assert!(data == pattern(2, 6000));
    assert_eq!(rig.expect(Op::Shutdown).header.flags.get(), shutdown::BOTH);
    // Data that the guest still sends is accepted and dropped.
    rig.data(host, 5, b"too late");
    rig.op(Op::Reset, host, 5);
    assert_eq!(rig.held(), (0, 0, 0));
}

#[test]
fn a_reset_of_the_device_closes_everything() {
    let mut rig = Rig::new();
    let (mut program, _) = rig.connected(5);
    let waiting = UnixStream::connect(&rig.path).unwrap();
    rig.host_event();
    rig.driver.reset();
    program.set_nonblocking(false).unwrap();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    drop(waiting);
    // A program that connects without a driver is served once a driver is active.
    let mut early = UnixStream::connect(&rig.path).unwrap();
    early.write_all(b"CONNECT 6\n").unwrap();
    rig.host_event();
    rig.probe();
    rig.host_event();
    assert_eq!(rig.expect(Op::Request).header.dst_port.get(), 6);
}

#[test]
fn packets_may_be_cut_into_any_descriptors() {
    let mut rig = Rig::new();
    let (mut program, host) = rig.connected(5);
    let data = pattern(3, 9000);
    let len = u32::try_from(data.len()).unwrap().into();
    let packet = [PacketHeader { len, ..header(Op::Rw, host, 5) }.as_bytes(), &data].concat();
    let at = rig.driver.put(&packet);
    let cuts = [0, 10, 44, 45, 4000, packet.len() as u64];
    let chain: Vec<_> = cuts
        .windows(2)
        .map(|cut| MockDescriptor::readable(GuestAddress(at.0 + cut[0]), (cut[1] - cut[0]) as u32))
        .collect();
    rig.driver.send(TX, &chain);
    assert!(read_now(&mut program) == data);
}

#[test]
fn receive_buffers_may_be_cut_into_any_descriptors() {
    // The header over four of them, its end with data behind it in one, hundreds to a buffer.
    for cut in [&[1, 20, 22, 1, 1000, 3052][..], &[30, 2000], &[41; 100], &[16; 256], &[43, 2]] {
        let mut rig = Rig::with_buffers(cut);
        let (mut program, _) = rig.connected(5);
        let data = pattern(4, 50_000);
        program.write_all(&data).unwrap();
        rig.host_event();
        let got: Vec<u8> =
            std::iter::from_fn(|| rig.packet()).flat_map(|packet| packet.data).collect();
        assert!(got == data, "{cut:?}: {} bytes", got.len());
        assert_eq!(count(&rig.handle.counters().rx_queue_event_fails), 0);
    }
}
