// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The boot vCPU's registers at the kernel's first instruction, and the state of every vCPU's local
//! APIC and MSRs. The other vCPUs wait for INIT and SIPI with KVM's default registers.

use kvm_bindings::{
    Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::kernel::KernelEntry;
use super::layout;

/// A vCPU's initial state could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Guest memory is too small for the descriptor and page tables.
    #[error("boot tables do not fit in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused.
    #[error("cannot set {what} of a vCPU: {source}")]
    Kvm {
        /// Which registers.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM knows none of our MSRs past this one.
    #[error("KVM cannot set MSR {0:#x}")]
    Msr(u32),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> RegisterError {
    move |source| RegisterError::Kvm { what, source }
}

// Control registers and EFER (AMD64 manual volume 2, 3.1).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

// Descriptor attributes: type, S, DPL, P in the low byte, then AVL, L, D, G in the top nibble.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TSS_BUSY: u16 = 0x008b;
const LIMIT_4G: u32 = 0xf_ffff;
const LIMIT_TSS: u32 = 0x67;

/// Indexes in the GDT. The Linux protocol requires code at selector 0x10 and data at 0x18.
const GDT_CODE: u16 = 2;
const GDT_DATA: u16 = 3;
const GDT_TSS: u16 = 4;

// Page table entries (AMD64 manual volume 2, 5.3).
const PTE_PRESENT_RW: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;
const TABLE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;

// MSRs.
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled with write-back as the default type, as left by firmware.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

// Local APIC registers (Intel SDM volume 3, 11.4.1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;

/// Sets the state common to all vCPUs: MSRs and the local APIC's two input lines.
///
/// # Errors
///
/// [`RegisterError`]: KVM refuses a register.
pub fn setup_common(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    // Fails for lists longer than KVM allows only.
    let msrs = Msrs::from_entries(&entries).map_err(|_| RegisterError::Msr(entries[0].index))?;
    let set = vcpu.set_msrs(&msrs).map_err(kvm("MSRs"))?;
    if let Some(refused) = entries.get(set) {
        return Err(RegisterError::Msr(refused.index));
    }

    let mut lapic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    write_lapic(&mut lapic, APIC_LVT_LINT0, DELIVERY_EXTINT);
    write_lapic(&mut lapic, APIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("local APIC"))
}

/// Prepares `vcpu` for the kernel's first instruction.
///
/// # Errors
///
/// [`RegisterError`]: KVM refuses a register, or guest RAM cannot be written.
pub fn setup_boot<M: GuestMemoryBackend>(
    vcpu: &VcpuFd,
    mem: &M,
    entry: KernelEntry,
) -> Result<(), RegisterError> {
    let code = match entry {
        KernelEntry::Pvh { .. } => CODE_32,
        KernelEntry::Linux64 { .. } => CODE_64,
    };
    let gdt = gdt(code);
    for (at, descriptor) in (0u64..).zip(gdt) {
        mem.write_obj(descriptor, GuestAddress(layout::GDT.0 + at * 8))?;
    }
    let mut sregs = vcpu.get_sregs().map_err(kvm("segments"))?;
    set_segments(&mut sregs, &gdt);
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        KernelEntry::Pvh { rip } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            regs.rip = rip.0;
            regs.rbx = layout::PVH_START_INFO.0;
        }
        KernelEntry::Linux64 { rip, .. } => {
            write_page_tables(mem)?;
            sregs.cr3 = layout::PAGE_TABLES.0;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PE | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            regs.rip = rip.0;
            regs.rsi = layout::ZERO_PAGE.0;
            regs.rsp = layout::BOOT_STACK.0;
            regs.rbp = layout::BOOT_STACK.0;
        }
    }
    vcpu.set_sregs(&sregs).map_err(kvm("segments"))?;
    vcpu.set_regs(&regs).map_err(kvm("registers"))?;
    // All exceptions masked, 64-bit precision: as FNINIT leaves them.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(kvm("FPU"))
}

/// Identity map of the first GiB by 2 MiB pages: kernel, zero page and command line are in it.
fn write_page_tables<M: GuestMemoryBackend>(mem: &M) -> Result<(), GuestMemoryError> {
    let pml4 = layout::PAGE_TABLES.0;
    let (pointers, directory) = (pml4 + TABLE, pml4 + 2 * TABLE);
    mem.write_obj(pointers | PTE_PRESENT_RW, GuestAddress(pml4))?;
    mem.write_obj(directory | PTE_PRESENT_RW, GuestAddress(pointers))?;
    for at in 0..512u64 {
        let entry = (at * LARGE_PAGE) | PTE_PRESENT_RW | PTE_LARGE;
        mem.write_obj(entry, GuestAddress(directory + at * 8))?;
    }
    Ok(())
}

fn gdt(code: u16) -> [u64; 5] {
    [0, 0, descriptor(code, LIMIT_4G), descriptor(DATA, LIMIT_4G), descriptor(TSS_BUSY, LIMIT_TSS)]
}

/// A segment descriptor with base 0 (AMD64 manual volume 2, 4.7).
fn descriptor(attributes: u16, limit: u32) -> u64 {
    let (attributes, limit) = (u64::from(attributes), u64::from(limit));
    (limit & 0xffff)
        | (attributes & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (attributes >> 12) << 52
}

/// The hidden part of a segment register loaded from `gdt[index]`.
fn segment(gdt: &[u64; 5], index: u16) -> kvm_segment {
    let descriptor = gdt[usize::from(index)];
    let bit = |at: u32| (descriptor >> at & 1) as u8;
    let granular = bit(55) != 0;
    let limit = (descriptor & 0xffff | (descriptor >> 48 & 0xf) << 16) as u32;
    kvm_segment {
        base: 0,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..Default::default()
    }
}

fn set_segments(sregs: &mut kvm_sregs, gdt: &[u64; 5]) {
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = (size_of_val(gdt) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    let data = segment(gdt, GDT_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cs = segment(gdt, GDT_CODE);
    sregs.tr = segment(gdt, GDT_TSS);
}

/// Sets the delivery mode of a local vector table entry, unmasked.
fn write_lapic(lapic: &mut kvm_lapic_state, register: usize, delivery: u32) {
    for (at, byte) in delivery.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + at] = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_descriptors_are_the_well_known_ones() {
        assert_eq!(descriptor(CODE_64, LIMIT_4G), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE_32, LIMIT_4G), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA, LIMIT_4G), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn segments_say_what_their_descriptors_say() {
        let code = segment(&gdt(CODE_64), GDT_CODE);
        assert_eq!((code.selector, code.l, code.db, code.type_), (0x10, 1, 0, 0xb));
        assert_eq!(code.limit, u32::MAX);
        let code = segment(&gdt(CODE_32), GDT_CODE);
        assert_eq!((code.l, code.db, code.present, code.s), (0, 1, 1, 1));
        let tss = segment(&gdt(CODE_64), GDT_TSS);
        assert_eq!((tss.limit, tss.type_, tss.s, tss.g), (LIMIT_TSS, 0xb, 0, 0));
    }

    #[test]
    fn page_tables_map_the_first_gib_to_itself() {
        let mem =
            vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&mem).unwrap();
        let walk = |address: u64| {
            let mut table = layout::PAGE_TABLES.0;
            for shift in [39, 30, 21] {
                let index = address >> shift & 0x1ff;
                table = mem.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
                assert_eq!(table & PTE_PRESENT_RW, PTE_PRESENT_RW);
                table &= !0xfff & !(1 << 63);
            }
            table | address & (LARGE_PAGE - 1)
        };
        for address in [0, 0x7000, 0x20_0000, 0x3fff_ffff] {
            assert_eq!(walk(address), address);
        }
    }
}
