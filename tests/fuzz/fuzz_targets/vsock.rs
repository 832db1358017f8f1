// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets of a hostile driver, and programs on the host that connect, talk and vanish. What must
//! hold is in `chains.rs`; and a reset leaves nothing behind.
#![no_main]

mod chains;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use chains::{Rig, Shape, memory};
use devices::virtio::{DeviceLock, QueueHost};
use devices::vsock::{MAX_CONNECTIONS, Vsock, VsockConfig};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Step {
    Packet {
        queue: u8,
        header: Packet,
        shape: Shape,
    },
    Notify(u8),
    Corrupt {
        queue: u8,
        number: u8,
        entry: [u8; 16],
    },
    /// A program connects and says something.
    Connect {
        port: u8,
        says: Vec<u8>,
    },
    Says {
        program: u8,
        bytes: u16,
    },
    Reads(u8),
    Leaves(u8),
    Run,
    Reset,
}

/// A header near enough to a right one to reach something.
#[derive(Debug, Arbitrary)]
struct Packet {
    lies: u8,
    host_port: u8,
    guest_port: u8,
    len: u32,
    op: u8,
    flags: u8,
    room: u32,
    taken: u32,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let guest = if self.lies & 1 == 0 { 3u64 } else { 7 };
        let host = if self.lies & 2 == 0 { 2u64 } else { 9 };
        let kind = if self.lies & 4 == 0 { 1u16 } else { 2 };
        let len = if self.lies & 8 == 0 { self.len % 256 } else { self.len };
        // The host's first ports for programs that connect, and some others.
        let host_port = match self.host_port {
            port @ 0..200 => (1 << 30) + u32::from(port % 8),
            port => port.into(),
        };
        let mut bytes = Vec::new();
        bytes.extend(guest.to_le_bytes());
        bytes.extend(host.to_le_bytes());
        bytes.extend(u32::from(self.guest_port % 4).to_le_bytes());
        bytes.extend(host_port.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u16::from(self.op % 10).to_le_bytes());
        bytes.extend(u32::from(self.flags % 4).to_le_bytes());
        bytes.extend(self.room.to_le_bytes());
        bytes.extend(self.taken.to_le_bytes());
        bytes
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    features: u64,
    steps: Vec<Step>,
}

/// Where the socket is.
static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("ballast-fuzz-vsock-{}", std::process::id()))
});

fuzz_target!(|input: Input| {
    let mem = memory();
    let _ = std::fs::remove_file(&*PATH);
    let listener = UnixListener::bind(&*PATH).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let config = VsockConfig {
        guest_cid: 3,
        listener,
        max_connections: MAX_CONNECTIONS,
        path: PATH.clone(),
    };
    let device = Arc::new(DeviceLock::new(Vsock::new(config).expect("a device")));
    // A program that the guest can reach.
    let name = format!("{}_201", PATH.display());
    let _ = std::fs::remove_file(&name);
    let server = UnixListener::bind(&name).expect("a socket");
    server.set_nonblocking(true).expect("a socket");
    let mut rig = Rig::new(&mem, device.clone(), 3, input.features);
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut buffer = [0; 4096];
    for step in input.steps.iter().take(64) {
        match step {
            Step::Packet { queue, header, shape } => {
                // Most are sent; the others are room for what comes.
                let queue = if *queue % 4 == 3 { 0 } else { u16::from(*queue % 4) };
                let header = if queue == 0 { Vec::new() } else { header.bytes() };
                rig.add(queue, &header, &shape.without_status());
            }
            Step::Notify(queue) => rig.driver.notify((queue % 3).into()),
            Step::Corrupt { queue, number, entry } => rig.corrupt((*queue).into(), *number, *entry),
            Step::Connect { port, says } => {
                if let Ok(mut program) = UnixStream::connect(&*PATH) {
                    program.set_nonblocking(true).expect("a socket");
                    let _ = program.write_all(format!("CONNECT {}\n", port % 4).as_bytes());
                    let _ = program.write_all(&says[..says.len().min(4096)]);
                    programs.push(program);
                }
            }
            Step::Says { program, bytes } => {
                if let Some(program) = programs.get_mut(usize::from(*program)) {
                    let _ = program.write(&vec![7; (*bytes).into()]);
                }
            }
            Step::Reads(program) => {
                if let Some(program) = programs.get_mut(usize::from(*program)) {
                    let _ = program.read(&mut buffer);
                }
            }
            Step::Leaves(program) => {
                if usize::from(*program) < programs.len() {
                    programs.remove((*program).into());
                }
            }
            Step::Run => rig.run(),
            Step::Reset => rig.probe(),
        }
        if let Ok((program, _)) = server.accept() {
            program.set_nonblocking(true).expect("a socket");
            programs.push(program);
        }
        rig.driver.transport().process_queue(0);
    }
    rig.run();
    rig.driver.reset();
    assert_eq!(device.lock().held(), (0, 0, 0), "a reset leaves nothing");
    let _ = std::fs::remove_file(&name);
});
