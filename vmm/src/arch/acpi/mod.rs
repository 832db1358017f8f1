// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, MADT, DSDT.
//!
//! The platform is hardware-reduced (4.1): no PM timer, no SCI, no legacy interrupt controller to
//! probe, which saves the guest boot time; sleep and reset use three dedicated ports.
//!
//! - `mod.rs` (here): the tables that point to each other, and where they lie
//! - `dsdt`: the devices in AML

mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use devices::legacy::power;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::layout;
pub use dsdt::MmioWindow;

/// Ours, in every table.
const OEM_ID: [u8; 6] = *b"BALAST";
const OEM_TABLE: [u8; 8] = *b"BALLASTM";
const OEM_REVISION: u32 = 1;
/// DSDT revision: integers of 64 bits (ACPI 6.5, table 5.31).
const DSDT_REVISION: u8 = 2;
/// Size of a table header.
const HEADER: u32 = 36;
/// Tables begin at multiples of this.
const ALIGN: u64 = 16;

// IA-PC boot architecture flags (ACPI 6.5, table 5.10).
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_8042: u16 = 1 << 1;
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_ASPM: u16 = 1 << 4;
const BOOT_NO_RTC: u16 = 1 << 5;

/// The properties of the machine that its tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiMachine<'a> {
    /// vCPUs, with APIC ids from 0.
    pub cpus: u8,
    /// virtio-mmio devices.
    pub windows: &'a [MmioWindow],
}

/// The tables could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// Guest memory is too small.
    #[error("ACPI tables do not fit in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// More devices than there is room for.
    #[error("ACPI tables need more than the {0} bytes reserved for them")]
    TooLarge(u64),
}

/// Writes all tables and returns the address of the RSDP.
///
/// # Errors
///
/// [`AcpiError`]: the tables cannot be written to guest RAM or do not fit.
pub fn write_tables<M: GuestMemoryBackend>(
    mem: &M,
    machine: &AcpiMachine<'_>,
) -> Result<GuestAddress, AcpiError> {
    let mut next = layout::ACPI_START.0 + Rsdp::len() as u64;
    let mut place = |table: &dyn Aml| -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let start = next.next_multiple_of(ALIGN);
        next = start + bytes.len() as u64;
        if next > layout::ACPI_END.0 {
            return Err(AcpiError::TooLarge(layout::ACPI_END.0 - layout::ACPI_START.0));
        }
        mem.write_slice(&bytes, GuestAddress(start))?;
        Ok(start)
    };
    let dsdt = place(&dsdt(machine.windows))?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(machine.cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    mem.write_slice(&rsdp, layout::ACPI_START)?;
    Ok(layout::ACPI_START)
}

fn dsdt(windows: &[MmioWindow]) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM_ID, OEM_TABLE, OEM_REVISION);
    table.append_slice(&dsdt::definition(windows));
    table
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |at: u16| {
        let address = u64::from(layout::PORT_POWER + at);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // Set means: there is no such button at a fixed register.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch =
        (BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA | BOOT_NO_ASPM | BOOT_NO_RTC).into();
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE, OEM_REVISION, apic);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // An id that no CPU has.
    madt.add_structure(IoApic::new(cpus, layout::IOAPIC, 0));
    madt
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    fn table(mem: &GuestMemoryMmap, at: u64) -> Vec<u8> {
        let len: u32 = mem.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn tables_are_found_from_the_root_and_sum_to_zero() {
        let mem = memory();
        let windows = [MmioWindow { base: 0xd000_0000, gsi: 5 }];
        let machine = AcpiMachine { cpus: 3, windows: &windows };
        let rsdp_at = write_tables(&mem, &machine).unwrap();
        let mut rsdp = [0; 36];
        mem.read_slice(&mut rsdp, rsdp_at).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&mem, u64_at(&rsdp, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&mem, u64_at(&xsdt, 36));
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = table(&mem, u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&mem, u64_at(&fadt, 140));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn reset_and_sleep_registers_are_ports() {
        let mut bytes = Vec::new();
        fadt(0).to_aml_bytes(&mut bytes);
        assert_eq!(bytes[116], 1, "reset register is in I/O space");
        assert_eq!(u64_at(&bytes, 120), u64::from(layout::PORT_POWER) + 2);
        assert_eq!(bytes[128], power::RESET_VALUE);
        assert_eq!(u64_at(&bytes, 248), u64::from(layout::PORT_POWER));
    }

    #[test]
    fn as_many_cpus_and_devices_as_can_be_fit() {
        let windows: Vec<_> =
            (0..19).map(|n| MmioWindow { base: 0xd000_0000 + n * 0x1000, gsi: 5 + n }).collect();
        write_tables(&memory(), &AcpiMachine { cpus: 254, windows: &windows }).unwrap();
        let absurd = vec![windows[0]; 4000];
        let error =
            write_tables(&memory(), &AcpiMachine { cpus: 1, windows: &absurd }).unwrap_err();
        assert!(matches!(error, AcpiError::TooLarge(_)), "{error}");
    }
}
