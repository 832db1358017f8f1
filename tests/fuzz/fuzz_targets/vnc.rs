// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile VNC client, and a guest that changes its picture in between.
//!
//! The oracle: the stream stays in step. For any client input, everything that it receives is a
//! handshake, then whole updates whose rectangles lie in the desktop of that moment, each with as
//! many pixels as it names; and all memory is given back when the client closed the connection.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use devices::display::vnc::{Patience, VncView, serve_client};
use devices::display::{Area, Display, DisplayFrames, Headless, Pixels, Rect, ScanoutId, Size};
use devices::virtio::Deadline;
use libfuzzer_sys::fuzz_target;
use mm::budget::Budget;

/// Bytes of a pixel that the client asks for next, and the format that says so.
const FORMATS: [(usize, [u8; 16]); 3] = [
    (4, [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]),
    (2, [16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]),
    (1, [8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0]),
];

#[derive(Debug, Arbitrary)]
enum Step {
    Format(u8),
    Encodings {
        resize: bool,
        others: Vec<u32>,
    },
    /// Asks for everything, and reads the update.
    Update,
    Input([u8; 7]),
    CutText(Vec<u8>),
    Flush {
        x: u8,
        y: u8,
        width: u8,
        height: u8,
    },
    Show {
        width: u8,
        height: u8,
    },
    Dark,
    /// Anything; nothing that comes after it can be understood.
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Input {
    version: u8,
    handshake: Vec<u8>,
    polite: bool,
    steps: Vec<Step>,
}

struct Plain(Size);

impl Pixels for Plain {
    fn size(&self) -> Size {
        self.0
    }

    fn copy(&self, area: Area, out: &mut [u8], stride: usize, deadline: &mut Deadline) -> u32 {
        for line in out.chunks_mut(stride).take(area.size.height.into()) {
            line[..4 * usize::from(area.size.width)].fill(7);
        }
        deadline.charge(area.size.bytes());
        area.size.height.into()
    }
}

/// The client, which reads what it was sent as the protocol says.
struct Client {
    stream: UnixStream,
    pixel: usize,
    size: (u16, u16),
    resize: bool,
}

impl Client {
    fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn send(&mut self, bytes: &[u8]) {
        // The server may have hung up: it is right to.
        let _ = self.stream.write_all(bytes);
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        let mut left = vec![0; bytes];
        self.stream.read_exact(&mut left).ok()
    }

    fn handshake(&mut self, version: u8) -> Option<()> {
        assert_eq!(&self.read::<12>()?, b"RFB 003.008\n");
        let (name, asks, result) = match version % 3 {
            0 => (b"RFB 003.003\n", false, false),
            1 => (b"RFB 003.007\n", true, false),
            _ => (b"RFB 003.008\n", true, true),
        };
        self.send(name);
        if asks {
            assert_eq!(self.read::<2>()?, [1, 1]);
            self.send(&[1]);
        } else {
            assert_eq!(self.read::<4>()?, [0, 0, 0, 1]);
        }
        if result {
            assert_eq!(self.read::<4>()?, [0; 4]);
        }
        self.send(&[1]);
        let init = self.read::<24>()?;
        let word = |at: usize| u16::from_be_bytes([init[at], init[at + 1]]);
        self.size = (word(0), word(2));
        assert_eq!(init[4..20], FORMATS[0].1);
        self.skip(u32::from_be_bytes([init[20], init[21], init[22], init[23]]) as usize)
    }

    /// Reads one update.
    fn update(&mut self) -> Option<()> {
        let [kind, _, high, low] = self.read()?;
        assert_eq!(kind, 0, "a message that no server sends");
        for _ in 0..u16::from_be_bytes([high, low]) {
            let head = self.read::<12>()?;
            let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let (x, y, width, height) = (word(0), word(2), word(4), word(6));
            match i32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
                -223 => {
                    assert!(self.resize, "the client did not say that it understands this");
                    self.size = (width, height);
                }
                0 => {
                    let fits = |at: u16, len: u16, side: u16| {
                        len > 0 && u32::from(at) + u32::from(len) <= u32::from(side)
                    };
                    assert!(fits(x, width, self.size.0) && fits(y, height, self.size.1));
                    self.skip(usize::from(width) * usize::from(height) * self.pixel)?;
                }
                other => panic!("encoding {other}"),
            }
        }
        Some(())
    }
}

fn flush(display: &mut Headless, frames: &DisplayFrames, rect: Rect) {
    let id = ScanoutId::new(0).expect("a scanout");
    let Some(size) = frames.size(id) else { return };
    if let Some(area) = rect.clip(Area::whole(size)) {
        display.flush(id, area, &Plain(size), &mut Deadline::never());
    }
}

fn converse(client: &mut Client, display: &mut Headless, frames: &DisplayFrames, input: &Input) {
    let id = ScanoutId::new(0).expect("a scanout");
    if !input.polite {
        client.send(&input.handshake[..input.handshake.len().min(64)]);
        return;
    }
    if client.handshake(input.version).is_none() {
        return;
    }
    for step in input.steps.iter().take(24) {
        match step {
            Step::Format(n) => {
                let (pixel, format) = FORMATS[usize::from(*n) % FORMATS.len()];
                client.pixel = pixel;
                client.send(&[&[0, 0, 0, 0], &format[..]].concat());
            }
            Step::Encodings { resize, others } => {
                let mut encodings: Vec<u32> = others.iter().take(20).copied().collect();
                encodings.retain(|encoding| *encoding != (-223i32).cast_unsigned());
                encodings.extend(resize.then_some((-223i32).cast_unsigned()));
                client.resize = *resize;
                client.send(&[2, 0, 0, encodings.len() as u8]);
                encodings.iter().for_each(|encoding| client.send(&encoding.to_be_bytes()));
            }
            Step::Update => {
                flush(display, frames, Rect::new(0, 0, u32::MAX, u32::MAX));
                client.send(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                if client.update().is_none() {
                    return;
                }
            }
            Step::Input(bytes) => {
                client.send(&[4]);
                client.send(bytes);
            }
            Step::CutText(text) => {
                let text = &text[..text.len().min(300)];
                client.send(&[6, 0, 0, 0]);
                client.send(&(text.len() as u32).to_be_bytes());
                client.send(text);
            }
            Step::Flush { x, y, width, height } => {
                let side = |n: &u8| u32::from(*n);
                flush(display, frames, Rect::new(side(x), side(y), side(width), side(height)));
            }
            Step::Show { width, height } => {
                let size = Size::checked((*width).into(), (*height).into());
                display.set_size(id, size);
            }
            Step::Dark => display.set_size(id, None),
            Step::Raw(bytes) => {
                client.send(&bytes[..bytes.len().min(300)]);
                return;
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let budget = Budget::bytes("fuzz", 4 << 20);
    let (mut display, frames) = Headless::new(Arc::clone(&budget));
    let scanout = ScanoutId::new(0).expect("a scanout");
    display.set_size(scanout, Some(Size::new(60, 40)));
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let short = Duration::from_millis(500);
    let patience = Patience { handshake: short, message: short, idle: short, strip: short };
    let view = VncView {
        frames: frames.clone(),
        scanout,
        refresh: Arc::new(|_| ()),
        patience,
        places: Budget::count("vnc-clients", 1),
        threads: Budget::count("threads", 2),
    };
    std::thread::scope(|scope| {
        // A client that breaks the protocol is dropped: whether it was is not the question.
        scope.spawn(move || {
            let _ = serve_client(&theirs, &view);
        });
        let mut client = Client { stream: ours, pixel: 4, size: (0, 0), resize: false };
        converse(&mut client, &mut display, &frames, &input);
        let _ = client.stream.shutdown(Shutdown::Both);
    });
    assert_eq!(budget.used(), 0, "memory of a client that is gone");
    // Buffers, the frame that is sent, and the next one, which may have another size.
    assert!(budget.peak() <= (1 << 20) + 2 * 255 * 255 * 4);
    assert!(!display.watched(scanout));
});
