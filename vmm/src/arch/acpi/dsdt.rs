// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine's devices in AML: serial port, keyboard controller, virtio-mmio windows, and the
//! sleep register's value for power-off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
    ZERO,
};

use devices::legacy::power::SLEEP_TYPE_S5;

use crate::arch::layout;

/// A virtio-mmio window and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First byte; below 4 GiB.
    pub base: u32,
    /// Interrupt line.
    pub gsi: u32,
}

/// The hardware id by which Linux's virtio-mmio driver knows its device.
const VIRTIO_MMIO_ID: &str = "LNRO0005";

/// The body of the DSDT.
pub(super) fn definition(windows: &[MmioWindow]) -> Vec<u8> {
    let mut aml = Vec::new();
    serial(&mut aml);
    keyboard(&mut aml);
    for (number, window) in windows.iter().enumerate() {
        virtio(&mut aml, number, *window);
    }
    let mut body = Scope::raw(Path::new("_SB_"), aml);
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut body);
    body
}

/// An edge: the device side writes an eventfd, and KVM pulses the line.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::PORT_SERIAL, layout::PORT_SERIAL, 1, 8);
    let irq = interrupt(layout::IRQ_SERIAL);
    device(aml, "COM1", &EISAName::new("PNP0501"), 0, &[&ports, &irq]);
}

fn keyboard(aml: &mut Vec<u8>) {
    let data = IO::new(layout::PORT_KEYBOARD, layout::PORT_KEYBOARD, 1, 1);
    let command = IO::new(layout::PORT_KEYBOARD + 4, layout::PORT_KEYBOARD + 4, 1, 1);
    let irq = interrupt(layout::IRQ_KEYBOARD);
    device(aml, "KBD_", &EISAName::new("PNP0303"), 0, &[&data, &command, &irq]);
}

fn virtio(aml: &mut Vec<u8>, number: usize, window: MmioWindow) {
    let memory = Memory32Fixed::new(true, window.base, layout::MMIO_SIZE as u32);
    let irq = interrupt(window.gsi);
    device(aml, &format!("V{number:03X}"), &VIRTIO_MMIO_ID, number, &[&memory, &irq]);
}

fn device(aml: &mut Vec<u8>, name: &str, id: &dyn Aml, number: usize, resources: &[&dyn Aml]) {
    let hid = Name::new(Path::new("_HID"), id);
    let uid = Name::new(Path::new("_UID"), &number);
    let resources = ResourceTemplate::new(resources.to_vec());
    let crs = Name::new(Path::new("_CRS"), &resources);
    Device::new(Path::new(name), vec![&hid, &uid, &crs]).to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(aml: &[u8], part: &[u8]) -> bool {
        aml.windows(part.len()).any(|w| w == part)
    }

    #[test]
    fn every_window_has_its_memory_and_its_line() {
        let windows =
            [MmioWindow { base: 0xd000_0000, gsi: 5 }, MmioWindow { base: 0xd000_1000, gsi: 6 }];
        let aml = definition(&windows);
        for (name, window) in [b"V000", b"V001"].into_iter().zip(windows) {
            assert!(holds(&aml, name));
            // Memory32Fixed: tag 0x86, 9 bytes, writeable, base, length (ACPI 6.5, 6.4.3.4).
            let mut memory = vec![0x86, 9, 0, 1];
            memory.extend(window.base.to_le_bytes());
            memory.extend(0x1000u32.to_le_bytes());
            assert!(holds(&aml, &memory));
            // Extended interrupt: tag 0x89, 6 bytes, consumer and edge, one line (6.4.3.6).
            let mut irq = vec![0x89, 6, 0, 0b11, 1];
            irq.extend(window.gsi.to_le_bytes());
            assert!(holds(&aml, &irq));
        }
        assert!(holds(&aml, b"LNRO0005\0"));
        assert!(!holds(&aml, b"V002"));
    }

    #[test]
    fn power_off_is_told() {
        let aml = definition(&[]);
        let mut s5 = b"\x08_S5_\x12".to_vec();
        assert!(holds(&aml, &s5));
        s5 = vec![0x0a, SLEEP_TYPE_S5];
        assert!(holds(&aml, &s5));
    }
}
