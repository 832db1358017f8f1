// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial port between a guest that sets its registers to anything and a host that types.
//!
//! The oracle is a model: every byte that the guest sends comes out once, in order;
//! every byte that is typed reaches a guest that reads, once, in order, however it reads; and the
//! port tells of input exactly while there is some. In loop-back mode the guest talks to itself.
#![no_main]

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::legacy::SerialPort;
use libfuzzer_sys::fuzz_target;
use vmm::console::Feed;

const DATA: u16 = 0;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
/// The data register is a part of the divisor.
const DIVISOR: u8 = 1 << 7;
const LOOP_BACK: u8 = 1 << 4;
const DATA_READY: u8 = 1;
/// Bytes of input that the port has room for.
const ROOM: usize = 64;

#[derive(Debug, Arbitrary)]
enum Step {
    /// The guest writes one register.
    Write(u8, u8),
    /// The guest reads one.
    Read(u8),
    /// An access of another width, or beyond the port.
    Odd { at: u16, data: Vec<u8>, write: bool },
    /// The guest sends.
    Send(Vec<u8>),
    /// The host types.
    Type(Vec<u8>),
    /// The event loop moves input on.
    Pump,
    /// The guest reads all that the port says is there.
    Drain,
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic before").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What must be true of the port.
#[derive(Default)]
struct Model {
    line_control: u8,
    modem_control: u8,
    /// In the port, for the guest.
    port: VecDeque<u8>,
    /// Typed, but not in the port yet.
    typed: VecDeque<u8>,
    sent: Vec<u8>,
}

impl Model {
    fn divisor(&self) -> bool {
        self.line_control & DIVISOR != 0
    }

    fn loops(&self) -> bool {
        self.modem_control & LOOP_BACK != 0
    }

    fn write(&mut self, register: u16, value: u8) {
        match register {
            DATA if self.divisor() => {}
            DATA if self.loops() => {
                if self.port.len() < ROOM {
                    self.port.push_back(value);
                }
            }
            DATA => self.sent.push(value),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            _ => {}
        }
    }

    fn pump(&mut self) {
        // The port is deaf while it talks to itself: what is typed then waits.
        if !self.loops() {
            let count = self.typed.len().min(ROOM - self.port.len());
            self.port.extend(self.typed.drain(..count));
        }
    }
}

struct Machine {
    serial: Arc<SerialPort>,
    feed: Feed,
    output: Output,
    model: Model,
}

impl Machine {
    fn read(&mut self, register: u16) -> u8 {
        let mut byte = [0];
        self.serial.read(register, &mut byte);
        if register == DATA && !self.model.divisor() {
            let expected = self.model.port.pop_front().unwrap_or_default();
            assert_eq!(byte[0], expected, "input is not as it was typed");
        }
        byte[0]
    }

    fn write(&mut self, register: u16, value: u8) {
        self.serial.write(register, &[value]);
        self.model.write(register, value);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(register, value) => self.write((register % 8).into(), value),
            Step::Read(register) => drop(self.read((register % 8).into())),
            Step::Odd { at, mut data, write } => {
                let at = if data.len() == 1 { at | 8 } else { at };
                if write {
                    self.serial.write(at, &data);
                } else {
                    self.serial.read(at, &mut data);
                    assert!(data.iter().all(|&byte| byte == 0));
                }
            }
            Step::Send(bytes) => bytes.into_iter().for_each(|byte| self.write(DATA, byte)),
            Step::Type(bytes) => {
                self.feed.add(&bytes);
                self.model.typed.extend(bytes);
            }
            Step::Pump => {
                self.feed.pump();
                self.model.pump();
            }
            Step::Drain if self.model.divisor() => {}
            Step::Drain => {
                for _ in 0..=ROOM {
                    if self.read(LINE_STATUS) & DATA_READY == 0 {
                        break;
                    }
                    self.read(DATA);
                }
            }
        }
        let ready = self.read(LINE_STATUS) & DATA_READY != 0;
        assert_eq!(ready, !self.model.port.is_empty(), "input is there, or is not");
        assert_eq!(self.feed.is_empty(), self.model.typed.is_empty());
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let output = Output::default();
    let serial = Arc::new(SerialPort::new(Box::new(output.clone())).expect("a port"));
    let feed = Feed::new(Arc::clone(&serial));
    let mut machine = Machine { serial, feed, output, model: Model::default() };
    for step in steps {
        machine.step(step);
    }
    assert_eq!(*machine.output.0.lock().expect("no panic before"), machine.model.sent);
});
