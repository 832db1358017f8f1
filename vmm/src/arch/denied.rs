// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host CPU features that are hidden from the guest unless its configuration enables them, as data:
//! bits of CPUID, whole leaves, and the MSRs that belong to them.
//!
//! KVM offers a guest all that it can virtualize. Each of these is a large piece of KVM that a
//! guest could attack, or a way to observe others on the same core; or it makes parked memory slow.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{
    Cap, Error, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};

/// The configuration field that enables a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `cpu.nested_virtualization`.
    Nested,
    /// `cpu.pmu`.
    Pmu,
    /// Never exposed.
    Never,
}

/// A register that CPUID fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Group::{Nested, Never, Pmu};
use Register::{Eax, Ebx, Ecx, Edx};

/// Bits that are cleared: leaf, subleaf, register, bits, group. (Intel SDM volume 2, CPUID; AMD64
/// manual volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.)
const BITS: &[(u32, u32, Register, u32, Group)] = &[
    (0x1, 0, Ecx, 1 << 5, Nested),                           // VMX
    (0x1, 0, Ecx, 1 << 2 | 1 << 4, Pmu),                     // 64-bit and CPL-qualified debug store
    (0x1, 0, Ecx, 1 << 15, Pmu),                             // PERF_CAPABILITIES
    (0x1, 0, Edx, 1 << 21, Pmu),                             // debug store
    (0x1, 0, Ecx, 1 << 3, Never),                            // MONITOR
    (0x7, 0, Ebx, 1 << 2, Never),                            // SGX
    (0x7, 0, Ebx, 1 << 12 | 1 << 15, Never),                 // resource monitoring and allocation
    (0x7, 0, Ebx, 1 << 25, Never),                           // processor trace
    (0x7, 0, Ecx, 1 << 30, Never),                           // SGX launch control
    (0x7, 0, Edx, 1 << 18, Never),                           // PCONFIG
    (0x7, 0, Edx, 1 << 19, Pmu),                             // last-branch records
    (0x8000_0001, 0, Ecx, 1 << 2, Nested),                   // SVM
    (0x8000_0001, 0, Ecx, 1 << 10, Pmu),                     // instruction-based sampling
    (0x8000_0001, 0, Ecx, 1 << 13 | 1 << 15, Never), // watchdog timer, lightweight profiling
    (0x8000_0001, 0, Ecx, 1 << 23 | 1 << 24 | 1 << 28, Pmu), // performance counters
    // Asynchronous page faults: the guest runs another task while its page comes. An absent page is
    // there sooner than the guest has gone idle and has taken the interrupt that says so.
    (0x4000_0001, 0, Eax, 1 << 4 | 1 << 10 | 1 << 14, Never),
];

/// Leaves that are left out, so that they read as zero.
const LEAVES: &[(u32, Group)] = &[
    (0xa, Pmu),            // architectural performance monitoring
    (0xf, Never),          // resource monitoring
    (0x10, Never),         // resource allocation
    (0x12, Never),         // SGX
    (0x14, Never),         // processor trace
    (0x1b, Never),         // PCONFIG
    (0x1c, Pmu),           // last-branch records
    (0x23, Pmu),           // architectural performance monitoring, extended
    (0x8000_000a, Nested), // SVM
    (0x8000_001b, Pmu),    // instruction-based sampling
    (0x8000_001f, Never),  // encrypted memory
    (0x8000_0022, Pmu),    // performance monitoring, version 2
];

/// MSRs that raise #GP: first, how many, group. KVM takes 16 ranges at most.
const MSRS: &[(u32, u32, Group)] = &[
    (0x480, 0x12, Nested),    // IA32_VMX_BASIC and what follows
    (0xc001_0114, 1, Nested), // VM_CR
    (0xc001_0117, 1, Nested), // VM_HSAVE_PA
    (0xc1, 8, Pmu),           // IA32_PMC0 to 7
    (0x186, 8, Pmu),          // IA32_PERFEVTSEL0 to 7
    (0x309, 4, Pmu),          // fixed counters
    (0x345, 1, Pmu),          // IA32_PERF_CAPABILITIES
    (0x38d, 4, Pmu),          // control of the counters
    (0x3f1, 2, Pmu),          // IA32_PEBS_ENABLE, IA32_PEBS_DATA_CFG
    (0x4c1, 8, Pmu),          // IA32_A_PMC0 to 7
    (0x600, 1, Pmu),          // IA32_DS_AREA
    (0xc001_0000, 8, Pmu),    // AMD's counters
    (0xc001_0200, 12, Pmu),   // AMD's extended counters
    (0x560, 0x12, Never),     // processor trace
];

/// Features that a configuration enables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// VMX or SVM.
    pub nested: bool,
    /// Performance counters and features based on them.
    pub pmu: bool,
}

impl Wanted {
    fn denies(self, group: Group) -> bool {
        match group {
            Nested => !self.nested,
            Pmu => !self.pmu,
            Never => true,
        }
    }
}

/// Removes denied features from `leaves`.
pub fn restrict_cpuid(leaves: &mut Vec<kvm_cpuid_entry2>, wanted: Wanted) {
    leaves.retain(|leaf| {
        !LEAVES.iter().any(|(function, group)| leaf.function == *function && wanted.denies(*group))
    });
    for leaf in leaves {
        for (function, index, register, bits, group) in BITS {
            if (leaf.function, leaf.index) != (*function, *index) || !wanted.denies(*group) {
                continue;
            }
            let register = match register {
                Eax => &mut leaf.eax,
                Ebx => &mut leaf.ebx,
                Ecx => &mut leaf.ecx,
                Edx => &mut leaf.edx,
            };
            *register &= !bits;
        }
    }
}

/// Has KVM refuse the MSRs that are denied. A KVM that cannot filter (before Linux 5.10) still
/// follows CPUID for most of them.
///
/// # Errors
///
/// Where KVM offers filters and refuses this one.
pub fn restrict_msrs(kvm: &Kvm, vm: &VmFd, wanted: Wanted) -> Result<(), Error> {
    if kvm.check_extension_raw(Cap::X86MsrFilter as u64) <= 0 {
        return Ok(());
    }
    let denied = MSRS.iter().filter(|(_, _, group)| wanted.denies(*group));
    // All zero: nothing in the range is allowed.
    let bitmap = [0; 4];
    let ranges: Vec<MsrFilterRange<'_>> = denied
        .map(|&(base, msr_count, _)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap: &bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has everything.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        (0..0x30)
            .chain(0x4000_0000..0x4000_0002)
            .chain(0x8000_0000..0x8000_0030)
            .map(|function| kvm_cpuid_entry2 {
                function,
                eax: u32::MAX,
                ebx: u32::MAX,
                ecx: u32::MAX,
                edx: u32::MAX,
                ..Default::default()
            })
            .collect()
    }

    fn restricted(wanted: Wanted) -> Vec<kvm_cpuid_entry2> {
        let mut leaves = everything();
        restrict_cpuid(&mut leaves, wanted);
        leaves
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32) -> Option<kvm_cpuid_entry2> {
        leaves.iter().find(|leaf| leaf.function == function).copied()
    }

    #[test]
    fn a_guest_sees_neither_nested_virtualization_nor_counters() {
        let leaves = restricted(Wanted::default());
        let basic = find(&leaves, 1).unwrap();
        assert_eq!(basic.ecx & (1 << 5 | 1 << 15 | 1 << 2), 0);
        assert_eq!(basic.edx & 1 << 21, 0);
        let amd = find(&leaves, 0x8000_0001).unwrap();
        assert_eq!(amd.ecx & (1 << 2 | 1 << 23), 0);
        assert_eq!(find(&leaves, 0x4000_0001).unwrap().eax, !(1 << 4 | 1 << 10 | 1 << 14));
        for function in [0xa, 0x12, 0x14, 0x8000_000a, 0x8000_0022] {
            assert_eq!(find(&leaves, function), None, "leaf {function:#x}");
        }
        // The rest is left alone.
        assert_eq!(basic.ecx | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 15, u32::MAX);
        assert_eq!(find(&leaves, 0xd).unwrap().eax, u32::MAX);
    }

    #[test]
    fn what_is_asked_for_is_there_and_nothing_else() {
        let nested = restricted(Wanted { nested: true, pmu: false });
        assert_ne!(find(&nested, 1).unwrap().ecx & 1 << 5, 0);
        assert!(find(&nested, 0x8000_000a).is_some());
        assert!(find(&nested, 0xa).is_none());
        let pmu = restricted(Wanted { nested: false, pmu: true });
        assert!(find(&pmu, 0xa).is_some());
        assert_eq!(find(&pmu, 0x8000_0001).unwrap().ecx & 1 << 2, 0);
        let both = restricted(Wanted { nested: true, pmu: true });
        assert!(find(&both, 0x12).is_none(), "SGX cannot be asked for");
    }

    #[test]
    fn msr_ranges_fit_the_filter_and_do_not_overlap() {
        assert!(MSRS.len() <= 16);
        let mut ranges: Vec<_> =
            MSRS.iter().map(|(base, count, _)| (*base, base + count)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
        assert!(MSRS.iter().all(|(_, count, _)| *count <= 32), "the bitmap has 32 bits");
    }
}
