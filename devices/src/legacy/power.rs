// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sleep control, sleep status and reset register of a hardware-reduced ACPI platform
//! (ACPI 6.5, 4.8.3.7 and 4.8.3.6). The FADT names their ports, the DSDT the sleep type of S5.

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;

/// Sleep type of S5, power off. Any number would do, as long as the DSDT's `_S5` has the same.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What the reset register wants to be written.
pub const RESET_VALUE: u8 = 1;

/// SLP_EN and the place of SLP_TYP in the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// Requests of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

/// The three one-byte registers.
pub struct PowerRegisters {
    request: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

impl PowerRegisters {
    /// Registers that call `request`, on the thread of the vCPU that writes.
    pub fn new(request: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self { request: Box::new(request) }
    }

    /// A vCPU reads: all registers are zero, as there is no wake-up event.
    pub fn read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    /// A vCPU writes. Sleep types other than S5 are ignored.
    pub fn write(&self, offset: u16, data: &[u8]) {
        let &[value] = data else { return };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                (self.request)(PowerRequest::Off);
            }
            RESET if value == RESET_VALUE => (self.request)(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_the_right_words_are_heard() {
        let (sender, heard) = mpsc::channel();
        let power = PowerRegisters::new(move |request| sender.send(request).unwrap());
        for value in 0..=u8::MAX {
            power.write(SLEEP_CONTROL, &[value]);
            power.write(SLEEP_STATUS, &[value]);
            power.write(3, &[value]);
        }
        power.write(SLEEP_CONTROL, &[0x34, 0]);
        // SLP_TYP 5 and SLP_EN; the other two bits do not matter, nor do the reserved ones.
        let offs: Vec<_> = heard.try_iter().collect();
        assert_eq!(offs, [PowerRequest::Off; 16]);
        power.write(RESET, &[0]);
        assert!(heard.try_recv().is_err());
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(heard.try_recv(), Ok(PowerRequest::Reset));
    }
}
