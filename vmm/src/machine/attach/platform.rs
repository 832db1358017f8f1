// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of every PC: serial port, keyboard controller, power registers.

use std::sync::Arc;

use devices::legacy::{KeyboardController, PowerRegisters, PowerRequest, SerialPort};

use crate::arch::layout;
use crate::console::{Console, ConsoleError, LostOutput};
use crate::exit::{ExitReason, ResetSource};
use crate::kvm::irq;
use crate::machine::assembly::{Assembly, Home, event};
use crate::machine::error::BuildError;

/// The devices that requests reach.
pub struct Platform {
    /// Presses Ctrl-Alt-Del.
    pub keyboard: Arc<KeyboardController>,
    /// What of the serial port's output is lost.
    pub lost_output: LostOutput,
}

/// Adds them to `machine`.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Platform, BuildError> {
    let lost_output = attach_serial(machine)?;
    let keyboard = attach_keyboard(machine)?;
    attach_power(machine)?;
    Ok(Platform { keyboard, lost_output })
}

fn attach_serial(machine: &mut Assembly<'_>) -> Result<LostOutput, BuildError> {
    let failed = BuildError::device::<ConsoleError>("console");
    let console = Console::open(&machine.config.console).map_err(&failed)?;
    let Console { output, input, lost } = console;
    let serial = Arc::new(SerialPort::new(output).map_err(BuildError::Event)?);
    irq::connect(&machine.vm, serial.irq(), layout::IRQ_SERIAL)?;
    machine.add_ports(layout::PORT_SERIAL, layout::PORT_SERIAL_LEN, serial.clone())?;
    let input = input.connect(serial, Arc::clone(&machine.exit)).map_err(&failed)?;
    if let Some(input) = input {
        machine.subscribe(input, &Home::Main);
    }
    Ok(lost)
}

fn attach_keyboard(machine: &mut Assembly<'_>) -> Result<Arc<KeyboardController>, BuildError> {
    let exit = Arc::clone(&machine.exit);
    let keyboard = Arc::new(KeyboardController::new(event()?, move || {
        exit.raise(ExitReason::Reset(ResetSource::KeyboardController));
    }));
    irq::connect(&machine.vm, keyboard.irq(), layout::IRQ_KEYBOARD)?;
    machine.add_ports(layout::PORT_KEYBOARD, layout::PORT_KEYBOARD_LEN, keyboard.clone())?;
    Ok(keyboard)
}

fn attach_power(machine: &mut Assembly<'_>) -> Result<(), BuildError> {
    let exit = Arc::clone(&machine.exit);
    let power = PowerRegisters::new(move |request| {
        exit.raise(match request {
            PowerRequest::Off => ExitReason::PowerOff,
            PowerRequest::Reset => ExitReason::Reset(ResetSource::AcpiRegister),
        });
    });
    machine.add_ports(layout::PORT_POWER, layout::PORT_POWER_LEN, Arc::new(power))?;
    Ok(())
}
