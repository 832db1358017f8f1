// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The keyboard controller of a PC, with a keyboard on its first port and nothing on its second.
//!
//! Guests use it to reset the machine; hosts, to press Ctrl-Alt-Del. The keyboard answers the
//! commands that drivers probe it with, so no kernel option is needed for it to be found.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Offset of the data port.
const DATA: u16 = 0;
/// Offset of the command port (write) and the status port (read).
const COMMAND: u16 = 4;

// Status register.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_UNLOCKED: u8 = 1 << 4;

// Configuration byte.
const CONFIG_INTERRUPT: u8 = 1 << 0;
const CONFIG_SYSTEM: u8 = 1 << 2;
const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
const CONFIG_AUX_OFF: u8 = 1 << 5;
const CONFIG_TRANSLATE: u8 = 1 << 6;

/// Output port with its lines at rest: bit 0 is the (inverted) reset line, bit 1 the A20 gate.
const OUTPUT_PORT: u8 = 0b11;
const LINE_RESET: u8 = 1 << 0;

// The keyboard's answers.
const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

/// Bytes that wait to be read, at most.
const QUEUE: usize = 32;

/// Ctrl, Alt and Del pressed and released, in scan code set 2, as a keyboard sends them.
const CTRL_ALT_DEL_SET2: [u8; 11] =
    [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// The same in set 1, as the controller translates them.
const CTRL_ALT_DEL_SET1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];

/// Keys were pressed that no driver reads.
#[derive(Debug, thiserror::Error)]
#[error("the guest does not read its keyboard")]
pub struct KeyboardBusy;

/// What the next byte at the data port is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// A command for the keyboard.
    KeyboardCommand,
    /// The argument of the keyboard's last command.
    KeyboardArgument(u8),
    /// The new configuration byte.
    Config,
    /// The new output port.
    OutputPort,
    /// A byte to return as if sent by the keyboard.
    Echo,
    /// A byte for the second port, which has no device.
    SecondPort,
}

struct KeyboardState {
    config: u8,
    expect: Expect,
    output: VecDeque<u8>,
}

/// Ports 0x60 (offset 0) and 0x64 (offset 4).
pub struct KeyboardController {
    state: Mutex<KeyboardState>,
    irq: EventFd,
    reset: Box<dyn Fn() + Send + Sync>,
}

impl KeyboardController {
    /// A controller that triggers `irq` for each byte that waits to be read, and calls `reset` (on
    /// the thread of the vCPU that asks) when the guest pulls the reset line.
    pub fn new(irq: EventFd, reset: impl Fn() + Send + Sync + 'static) -> Self {
        let state = KeyboardState {
            config: CONFIG_INTERRUPT | CONFIG_SYSTEM | CONFIG_AUX_OFF | CONFIG_TRANSLATE,
            expect: Expect::KeyboardCommand,
            output: VecDeque::with_capacity(QUEUE),
        };
        Self { state: Mutex::new(state), irq, reset: Box::new(reset) }
    }

    /// The interrupt, for irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Presses and releases Ctrl, Alt and Del.
    ///
    /// # Errors
    ///
    /// [`KeyboardBusy`]: the guest has not read earlier keys.
    pub fn ctrl_alt_del(&self) -> Result<(), KeyboardBusy> {
        let mut state = self.state();
        let keys = if state.config & CONFIG_TRANSLATE != 0 {
            &CTRL_ALT_DEL_SET1[..]
        } else {
            &CTRL_ALT_DEL_SET2[..]
        };
        if state.output.len() + keys.len() > QUEUE {
            return Err(KeyboardBusy);
        }
        self.send(&mut state, keys);
        Ok(())
    }

    /// A vCPU reads at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        let mut state = self.state();
        match offset {
            DATA => {
                *byte = state.output.pop_front().unwrap_or(0);
                if !state.output.is_empty() {
                    self.interrupt(&state);
                }
            }
            COMMAND => {
                *byte = STATUS_SYSTEM | STATUS_UNLOCKED;
                if !state.output.is_empty() {
                    *byte |= STATUS_OUTPUT_FULL;
                }
            }
            _ => {}
        }
    }

    /// A vCPU writes at `offset`.
    pub fn write(&self, offset: u16, data: &[u8]) {
        let &[byte] = data else { return };
        let mut state = self.state();
        match offset {
            DATA => self.data(&mut state, byte),
            COMMAND => self.command(&mut state, byte),
            _ => {}
        }
    }

    fn command(&self, state: &mut KeyboardState, command: u8) {
        state.expect = Expect::KeyboardCommand;
        match command {
            0x20 => {
                let config = state.config;
                self.send(state, &[config]);
            }
            0x60 => state.expect = Expect::Config,
            0xa7 => state.config |= CONFIG_AUX_OFF,
            0xa8 => state.config &= !CONFIG_AUX_OFF,
            // Test of the second port: its clock line is stuck.
            0xa9 => self.send(state, &[1]),
            0xaa => self.send(state, &[0x55]),
            0xab => self.send(state, &[0]),
            0xad => state.config |= CONFIG_KEYBOARD_OFF,
            0xae => state.config &= !CONFIG_KEYBOARD_OFF,
            0xc0 => self.send(state, &[0]),
            0xd0 => self.send(state, &[OUTPUT_PORT]),
            0xd1 => state.expect = Expect::OutputPort,
            0xd2 => state.expect = Expect::Echo,
            0xd3 | 0xd4 => state.expect = Expect::SecondPort,
            // Pulses the lines whose bits are clear.
            0xf0..=0xff if command & LINE_RESET == 0 => (self.reset)(),
            _ => {}
        }
    }

    fn data(&self, state: &mut KeyboardState, byte: u8) {
        let expected = std::mem::replace(&mut state.expect, Expect::KeyboardCommand);
        match expected {
            Expect::Config => state.config = byte,
            Expect::OutputPort if byte & LINE_RESET == 0 => (self.reset)(),
            Expect::OutputPort | Expect::SecondPort => {}
            Expect::Echo => self.send(state, &[byte]),
            Expect::KeyboardArgument(0xf0) if byte == 0 => self.send(state, &[ACKNOWLEDGE, 2]),
            Expect::KeyboardArgument(_) => self.send(state, &[ACKNOWLEDGE]),
            Expect::KeyboardCommand => self.keyboard(state, byte),
        }
    }

    /// The keyboard itself (IBM PS/2 technical reference, keyboards).
    fn keyboard(&self, state: &mut KeyboardState, command: u8) {
        match command {
            0xff => self.send(state, &[ACKNOWLEDGE, SELF_TEST_PASSED]),
            0xf2 => self.send(state, &[ACKNOWLEDGE, 0xab, 0x83]),
            0xee => self.send(state, &[0xee]),
            // LEDs, scan code set, typematic rate.
            0xed | 0xf0 | 0xf3 => {
                state.expect = Expect::KeyboardArgument(command);
                self.send(state, &[ACKNOWLEDGE]);
            }
            0xf4..=0xfd => self.send(state, &[ACKNOWLEDGE]),
            _ => self.send(state, &[RESEND]),
        }
    }

    /// Queues `bytes` for reading; excess bytes are lost, as in a real controller.
    fn send(&self, state: &mut KeyboardState, bytes: &[u8]) {
        let room = QUEUE - state.output.len();
        let first = state.output.is_empty();
        state.output.extend(&bytes[..bytes.len().min(room)]);
        if first {
            self.interrupt(state);
        }
    }

    fn interrupt(&self, state: &KeyboardState) {
        if state.config & CONFIG_INTERRUPT != 0
            && let Err(error) = self.irq.write(1)
        {
            tracing::error!(%error, "keyboard interrupt lost");
        }
    }

    fn state(&self) -> MutexGuard<'_, KeyboardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn controller() -> (KeyboardController, Arc<AtomicUsize>) {
        let resets = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&resets);
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let reset = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        (KeyboardController::new(irq, reset), resets)
    }

    fn read(controller: &KeyboardController, offset: u16) -> u8 {
        let mut byte = [0];
        controller.read(offset, &mut byte);
        byte[0]
    }

    /// Reads like an interrupt handler, one byte per interrupt.
    fn drain(controller: &KeyboardController) -> Vec<u8> {
        let mut bytes = Vec::new();
        while controller.irq.read().is_ok() {
            assert_ne!(read(controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
            bytes.push(read(controller, DATA));
        }
        assert_eq!(read(controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
        bytes
    }

    #[test]
    fn reset_by_pulse_and_by_output_port() {
        let (controller, resets) = controller();
        controller.write(COMMAND, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
        controller.write(COMMAND, &[0xff]);
        controller.write(COMMAND, &[0xd1]);
        controller.write(DATA, &[0x03]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
        controller.write(COMMAND, &[0xd1]);
        controller.write(DATA, &[0x02]);
        assert_eq!(resets.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_driver_finds_controller_and_keyboard() {
        let (controller, _) = controller();
        controller.write(COMMAND, &[0xaa]);
        assert_eq!(drain(&controller), [0x55]);
        controller.write(COMMAND, &[0x20]);
        let config = drain(&controller)[0];
        controller.write(COMMAND, &[0x60]);
        controller.write(DATA, &[config & !CONFIG_TRANSLATE]);
        controller.write(DATA, &[0xf2]);
        assert_eq!(drain(&controller), [ACKNOWLEDGE, 0xab, 0x83]);
        controller.write(DATA, &[0xed]);
        controller.write(DATA, &[0x07]);
        assert_eq!(drain(&controller), [ACKNOWLEDGE, ACKNOWLEDGE]);
        controller.write(DATA, &[0x00]);
        assert_eq!(drain(&controller), [RESEND]);
    }

    #[test]
    fn ctrl_alt_del_in_the_set_that_the_driver_chose() {
        let (controller, _) = controller();
        controller.ctrl_alt_del().unwrap();
        assert_eq!(drain(&controller), CTRL_ALT_DEL_SET1);
        controller.write(COMMAND, &[0x60]);
        controller.write(DATA, &[CONFIG_INTERRUPT]);
        controller.ctrl_alt_del().unwrap();
        let keys = drain(&controller);
        assert_eq!(keys[..4], [0x14, 0x11, 0xe0, 0x71]);
        assert_eq!(keys.last(), Some(&0x14));
    }

    #[test]
    fn output_that_is_never_read_is_bounded() {
        let (controller, _) = controller();
        while controller.ctrl_alt_del().is_ok() {}
        for _ in 0..1000 {
            controller.write(DATA, &[0xee]);
        }
        assert!(controller.state().output.len() <= QUEUE);
        controller.write(7, &[1]);
        controller.write(DATA, &[1, 2]);
        controller.read(DATA, &mut []);
    }
}
