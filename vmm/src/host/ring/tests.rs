// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::sync::mpsc::{self, Receiver, Sender};

use super::*;

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that reads nothing until released.
struct Stuck {
    entered: Sender<()>,
    go_on: Receiver<()>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.entered.send(()).unwrap();
        self.go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn everything_gets_out_in_order() {
    let memory = Memory::default();
    let ring = Ring::new("test", 1 << 16, Box::new(memory.clone()));
    let mut expected = Vec::new();
    for number in 0..1000 {
        let line = format!("{number}\n");
        assert!(ring.push(line.as_bytes()));
        expected.extend_from_slice(line.as_bytes());
        assert!(ring.flush(SOON));
    }
    assert_eq!(*memory.0.lock().unwrap(), expected);
    assert_eq!(ring.lost(), Lost::default());
}

#[test]
fn a_reader_that_takes_nothing_costs_records_and_no_time() {
    let ((entered, enters), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
    let ring = Ring::new("test", 100, Box::new(Stuck { entered, go_on: goes_on }));
    assert!(ring.push(b"first"));
    enters.recv().unwrap();
    assert!(ring.push(&[0; 100]), "the first record has left the ring");
    for _ in 0..1000 {
        assert!(!ring.push(b"more"));
    }
    assert_eq!(ring.lost(), Lost { records: 1000, bytes: 4000 });
    assert!(!ring.flush(Duration::from_millis(1)));
    go_on.send(()).unwrap();
    enters.recv().unwrap();
    go_on.send(()).unwrap();
    assert!(ring.flush(SOON));
    assert!(ring.push(b"again"));
}

/// Takes as many bytes as there is room for, then refuses as told.
#[derive(Clone)]
struct Limited {
    seen: Memory,
    room: Arc<Mutex<usize>>,
    refusal: io::ErrorKind,
}

impl Limited {
    fn new(room: usize, refusal: io::ErrorKind) -> Self {
        Self { seen: Memory::default(), room: Arc::new(Mutex::new(room)), refusal }
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        if *room == 0 {
            return Err(self.refusal.into());
        }
        let length = bytes.len().min(*room);
        *room -= length;
        self.seen.write(&bytes[..length])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Five lines of 3000 bytes, so that most chunks end in the middle of one.
fn long_lines() -> Vec<String> {
    (0..5).map(|n| format!("{}\n", n.to_string().repeat(2999))).collect()
}

#[test]
fn a_write_error_in_the_middle_tears_no_line() {
    for room in [1, 2999, 3000, 3001, 4096, 10_000] {
        let sink = Limited::new(room, io::ErrorKind::StorageFull);
        let ring = Ring::new("test", 1 << 16, Box::new(sink.clone()));
        for line in long_lines() {
            assert!(ring.push(line.as_bytes()));
        }
        assert!(!ring.flush(SOON), "there is no room");
        *sink.room.lock().unwrap() = usize::MAX;
        assert!(ring.push(b"later\n"));
        while !ring.flush(SOON) {}
        let seen = String::from_utf8(sink.seen.0.lock().unwrap().clone()).unwrap();
        assert!(seen == long_lines().concat() + "later\n", "after {room} bytes");
        assert_eq!(ring.lost(), Lost::default());
    }
}

#[test]
fn a_reader_that_takes_half_a_line_along_leaves_whole_lines_to_the_next() {
    let sink = Limited::new(3500, io::ErrorKind::BrokenPipe);
    let ring = Ring::new("test", 1 << 16, Box::new(sink.clone()));
    let line = |of: &str| of.repeat(9000) + "\n";
    assert!(ring.push(line("a").as_bytes()) && ring.push(line("b").as_bytes()));
    assert!(!ring.flush(SOON));
    sink.seen.0.lock().unwrap().clear();
    *sink.room.lock().unwrap() = usize::MAX;
    while !ring.flush(SOON) {}
    let seen = String::from_utf8(sink.seen.0.lock().unwrap().clone()).unwrap();
    assert!(seen == line("b"), "{} bytes", seen.len());
    assert_eq!(ring.lost(), Lost { records: 0, bytes: 9001 - 3500 });
}

#[test]
fn a_sink_that_fails_costs_whole_records_and_ends() {
    let sink = Limited::new(0, io::ErrorKind::StorageFull);
    let ring = Ring::new("test", 100, Box::new(sink));
    assert!(ring.push(b"kept\n"));
    assert!(!ring.flush(SOON));
    assert!(ring.push(&[b'x'; 100]) && !ring.push(b"lost\n"));
    assert_eq!(ring.lost(), Lost { records: 1, bytes: 5 });
}
