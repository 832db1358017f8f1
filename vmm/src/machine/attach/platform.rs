// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every PC has: serial port, keyboard controller, power registers.

use std::path::PathBuf;
use std::sync::Arc;

use devices::legacy::{KeyboardController, PowerRegisters, PowerRequest, SerialPort};

use crate::arch::layout;
use crate::config::ConsoleConfig;
use crate::console;
use crate::exit::{ExitReason, ResetSource};
use crate::kvm::irq;
use crate::machine::assembly::{Assembly, event};
use crate::machine::error::BuildError;

/// The devices that requests reach.
pub struct Platform {
    /// Presses Ctrl-Alt-Del.
    pub keyboard: Arc<KeyboardController>,
}

/// The console cannot be opened.
#[derive(Debug, thiserror::Error)]
enum ConsoleError {
    #[error("cannot open {} for output: {source}", path.display())]
    Output { path: PathBuf, source: std::io::Error },
    #[error("cannot take the terminal for input: {0}")]
    Input(std::io::Error),
}

/// Adds them to `machine`.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Platform, BuildError> {
    attach_serial(machine)?;
    let keyboard = attach_keyboard(machine)?;
    attach_power(machine)?;
    Ok(Platform { keyboard })
}

fn attach_serial(machine: &mut Assembly<'_>) -> Result<(), BuildError> {
    let config = &machine.config.console;
    let output = console::output(config).map_err(|source| {
        let path = match config {
            ConsoleConfig::File(path) => path.clone(),
            ConsoleConfig::Tty | ConsoleConfig::Null => PathBuf::from("(standard output)"),
        };
        BuildError::device("console")(ConsoleError::Output { path, source })
    })?;
    let serial = Arc::new(SerialPort::new(output).map_err(BuildError::Event)?);
    irq::connect(&machine.vm, serial.irq(), layout::IRQ_SERIAL)?;
    machine.add_ports(layout::PORT_SERIAL, layout::PORT_SERIAL_LEN, serial.clone())?;
    if *config == ConsoleConfig::Tty {
        let input = console::Input::new(serial, Arc::clone(&machine.exit));
        let input = input.map_err(ConsoleError::Input).map_err(BuildError::device("console"))?;
        machine.on_main.push(Box::new(input));
    }
    Ok(())
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
