// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A 16550 UART: the console. vm-superio has the registers; here are its interrupt, its output,
//! and an input that waits until the guest has room for it.

use std::io::{self, Write};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::serial::{self, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::throttle::Throttle;

/// The console could not take input.
pub type SerialError = serial::Error<io::Error>;

/// Offset of the register with the bit for loop-back mode.
const MODEM_CONTROL: u16 = 4;

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Deref for Irq {
    type Target = EventFd;

    fn deref(&self) -> &EventFd {
        &self.0
    }
}

/// Notifies the input's source that the guest has read all of it.
struct InputDrained(EventFd);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only after 2^64 - 2 writes without a read.
        let _ = self.0.write(1);
    }
}

struct SerialState {
    uart: Serial<Irq, InputDrained, Box<dyn Write + Send>>,
    log: Throttle,
}

/// The eight ports of a UART.
pub struct SerialPort {
    state: Mutex<SerialState>,
    irq: EventFd,
    drained: EventFd,
}

impl SerialPort {
    /// A UART that writes the guest's output to `output`, on the vCPU's thread.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left for an event.
    pub fn new(output: Box<dyn Write + Send>) -> io::Result<Self> {
        let irq = EventFd::new(EFD_NONBLOCK)?;
        let drained = EventFd::new(EFD_NONBLOCK)?;
        let uart =
            Serial::with_events(Irq(irq.try_clone()?), InputDrained(drained.try_clone()?), output);
        Ok(Self { state: Mutex::new(SerialState { uart, log: Throttle::default() }), irq, drained })
    }

    /// The interrupt, for irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Readable once the guest has read all input: more can be queued.
    pub fn drained(&self) -> &EventFd {
        &self.drained
    }

    /// Free space for input, in bytes.
    pub fn room(&self) -> usize {
        self.state().uart.fifo_capacity()
    }

    /// Input for the guest, at most [`room`](Self::room) bytes; returns how many it took.
    ///
    /// # Errors
    ///
    /// [`SerialError`]: more than [`room`](Self::room) bytes, or the interrupt cannot be raised.
    pub fn input(&self, bytes: &[u8]) -> Result<usize, SerialError> {
        self.state().uart.enqueue_raw_bytes(bytes)
    }

    /// A vCPU reads at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = self.state().uart.read(offset);
        }
    }

    /// A vCPU writes at `offset`. Bytes that the output does not accept are lost.
    pub fn write(&self, offset: u16, data: &[u8]) {
        if offset == MODEM_CONTROL {
            // It may leave loop-back mode, in which no input is taken. Fails as `InputDrained` does.
            let _ = self.drained.write(1);
        }
        if let (Ok(offset), &[byte]) = (u8::try_from(offset), data) {
            let mut state = self.state();
            let SerialState { uart, log } = &mut *state;
            if let Err(error) = uart.write(offset, byte)
                && let Some(suppressed) = log.admit()
            {
                tracing::warn!(%error, suppressed, "console output lost");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, SerialState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const DATA: u16 = 0;
    const INTERRUPT_ENABLE: u16 = 1;
    const LINE_STATUS: u16 = 5;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_comes_out_whatever_its_fate() {
        let sink = Sink::default();
        let serial = SerialPort::new(Box::new(sink.clone())).unwrap();
        for byte in b"up\n" {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"up\n");
        let broken = SerialPort::new(Box::new(Broken)).unwrap();
        for _ in 0..10_000 {
            broken.write(DATA, b"x");
        }
    }

    #[test]
    fn input_interrupts_and_drains() {
        let serial = SerialPort::new(Box::new(io::sink())).unwrap();
        serial.write(INTERRUPT_ENABLE, &[1]);
        let room = serial.room();
        assert_eq!(serial.input(&vec![7; room]).unwrap(), room);
        assert!(serial.irq().read().is_ok());
        assert_eq!(serial.room(), 0);
        assert!(serial.drained().read().is_err());
        let mut byte = [0];
        for _ in 0..room {
            serial.read(LINE_STATUS, &mut byte);
            assert_eq!(byte[0] & 1, 1);
            serial.read(DATA, &mut byte);
            assert_eq!(byte[0], 7);
        }
        assert!(serial.drained().read().is_ok());
    }

    #[test]
    fn input_goes_on_after_loop_back_mode() {
        let serial = SerialPort::new(Box::new(io::sink())).unwrap();
        serial.write(MODEM_CONTROL, &[1 << 4]);
        let _ = serial.drained().read();
        assert_eq!(serial.input(b"x").unwrap(), 0, "it talks to itself");
        serial.write(MODEM_CONTROL, &[0]);
        assert!(
            serial.drained().read().is_ok(),
            "the source of input is notified that there is room"
        );
        assert_eq!(serial.input(b"x").unwrap(), 1);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let serial = SerialPort::new(Box::new(io::sink())).unwrap();
        let mut data = [9; 4];
        serial.read(DATA, &mut data);
        assert_eq!(data, [0; 4]);
        serial.write(0xffff, &[1]);
        serial.write(DATA, &[]);
    }
}
