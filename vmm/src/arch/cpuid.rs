// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CPUID of each vCPU: the host features that KVM supports, with the guest's topology.
//!
//! The guest is one package. APIC ids are vCPU numbers; the threads of a core are neighbours.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// How the vCPUs hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all; at least 1.
    pub cpus: u8,
    /// vCPUs that share a core: 1, or 2.
    pub threads_per_core: u8,
}

impl Topology {
    fn cores(self) -> u8 {
        self.cpus.div_ceil(self.threads_per_core.max(1))
    }

    /// APIC id bits that number the threads within a core.
    fn thread_bits(self) -> u32 {
        bits_for(self.threads_per_core)
    }

    /// APIC id bits that number the vCPUs within the package.
    fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores())
    }
}

/// Bits that it takes to number `count` things.
fn bits_for(count: u8) -> u32 {
    u32::from(count.max(1)).next_power_of_two().trailing_zeros()
}

// Leaves (Intel SDM volume 2, CPUID; AMD64 manual volume 3, appendix E).
const BASIC: u32 = 0x1;
const CACHES_INTEL: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const EXTENDED: u32 = 0x8000_0001;
const SIZES_AMD: u32 = 0x8000_0008;
const CACHES_AMD: u32 = 0x8000_001d;
const TOPOLOGY_AMD: u32 = 0x8000_001e;
const TOPOLOGY_V2_AMD: u32 = 0x8000_0026;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the package has several cores and each counts as a CPU.
const ECX_CMP_LEGACY: u32 = 1 << 1;

/// Properties of the machine in CPUID besides topology.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// KVM emulates the TSC deadline timer: spares the guest the calibration of its APIC timer.
    pub tsc_deadline: bool,
    /// Vendor is AMD, or builds by AMD's manual.
    pub amd: bool,
}

impl Features {
    /// The vendor, as leaf 0 of `supported` names it.
    pub fn is_amd(supported: &[kvm_cpuid_entry2]) -> bool {
        supported.iter().find(|e| e.function == 0).is_some_and(|e| {
            // "Auth", "Hygo": the first four letters are in EBX.
            [0x6874_7541, 0x6f67_7948].contains(&e.ebx)
        })
    }
}

/// The leaves of the vCPU with APIC ID `apic_id`, based on KVM's supported leaves.
pub fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    topology: Topology,
    features: Features,
    apic_id: u8,
) -> Vec<kvm_cpuid_entry2> {
    let mut leaves: Vec<_> = supported
        .iter()
        // Rebuilt below, or describing the host's topology.
        .filter(|e| ![TOPOLOGY, TOPOLOGY_V2, TOPOLOGY_V2_AMD].contains(&e.function))
        .copied()
        .collect();
    for leaf in &mut leaves {
        match leaf.function {
            BASIC => basic(leaf, topology, features, apic_id),
            CACHES_INTEL => caches(leaf, topology, true),
            EXTENDED if features.amd => {
                set(&mut leaf.ecx, ECX_CMP_LEGACY, topology.cpus > 1);
            }
            SIZES_AMD if features.amd => {
                let bits = topology.package_bits();
                leaf.ecx = leaf.ecx & !0xf0ff | bits << 12 | (u32::from(topology.cpus) - 1);
            }
            CACHES_AMD => caches(leaf, topology, false),
            TOPOLOGY_AMD => {
                let threads = u32::from(topology.threads_per_core);
                leaf.eax = apic_id.into();
                leaf.ebx = ((threads - 1) << 8) | (u32::from(apic_id) / threads);
                leaf.ecx = 0;
            }
            _ => {}
        }
    }
    for function in [TOPOLOGY, TOPOLOGY_V2] {
        if supported.iter().any(|e| e.function == function) {
            leaves.extend(levels(function, topology, apic_id));
        }
    }
    leaves
}

fn basic(leaf: &mut kvm_cpuid_entry2, topology: Topology, features: Features, apic_id: u8) {
    let addressable = 1u32 << topology.package_bits();
    leaf.ebx = leaf.ebx & 0xffff | addressable.min(255) << 16 | u32::from(apic_id) << 24;
    leaf.ecx |= ECX_HYPERVISOR;
    set(&mut leaf.ecx, ECX_TSC_DEADLINE, features.tsc_deadline);
    set(&mut leaf.edx, EDX_HTT, topology.cpus > 1);
}

/// One cache: who shares it. The last level belongs to the package, others to a core.
fn caches(leaf: &mut kvm_cpuid_entry2, topology: Topology, cores_too: bool) {
    let (kind, level) = (leaf.eax & 0x1f, leaf.eax >> 5 & 7);
    if kind == 0 {
        return;
    }
    let sharing_bits = if level >= 3 { topology.package_bits() } else { topology.thread_bits() };
    leaf.eax = leaf.eax & 0x3fff | ((1 << sharing_bits) - 1) << 14;
    if cores_too {
        let cores = (1u32 << bits_for(topology.cores())).min(64);
        leaf.eax |= (cores - 1) << 26;
    }
}

/// Extended topology: a thread level, a core level, and the level that ends the list.
fn levels(function: u32, topology: Topology, apic_id: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u8| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count.into(),
        ecx: kind << 8 | index,
        edx: apic_id.into(),
        ..Default::default()
    };
    [
        level(0, 1, topology.thread_bits(), topology.threads_per_core),
        level(1, 2, topology.package_bits(), topology.cpus),
        level(2, 0, 0, 0),
    ]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FEATURES: Features = Features { tsc_deadline: true, amd: true };

    fn host() -> Vec<kvm_cpuid_entry2> {
        let leaf =
            |function, index, eax| kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
        vec![
            leaf(0, 0, 0x1f),
            leaf(BASIC, 0, 0),
            leaf(CACHES_INTEL, 0, 1 << 5 | 1 | 0xfff << 14),
            leaf(CACHES_INTEL, 3, 3 << 5 | 3),
            leaf(CACHES_INTEL, 4, 0),
            leaf(TOPOLOGY, 0, 9),
            leaf(TOPOLOGY, 1, 9),
            leaf(TOPOLOGY_V2, 0, 9),
            leaf(SIZES_AMD, 0, 0x3030),
            leaf(CACHES_AMD, 3, 3 << 5 | 3),
            leaf(TOPOLOGY_AMD, 0, 99),
            leaf(TOPOLOGY_V2_AMD, 0, 99),
        ]
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = leaves.iter().filter(|e| (e.function, e.index) == (function, index));
        let leaf = *found.next().unwrap();
        assert_eq!(found.next(), None, "leaf {function:#x} twice");
        leaf
    }

    #[test]
    fn six_vcpus_of_two_threads() {
        let topology = Topology { cpus: 6, threads_per_core: 2 };
        let leaves = for_vcpu(&host(), topology, FEATURES, 5);
        let basic = find(&leaves, BASIC, 0);
        assert_eq!(basic.ebx >> 16, 5 << 8 | 8);
        assert_eq!(basic.ecx, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(basic.edx, EDX_HTT);
        assert_eq!(find(&leaves, CACHES_INTEL, 0).eax, 3 << 26 | 1 << 14 | 1 << 5 | 1);
        assert_eq!(find(&leaves, CACHES_INTEL, 3).eax, 3 << 26 | 7 << 14 | 3 << 5 | 3);
        assert_eq!(find(&leaves, CACHES_INTEL, 4).eax, 0);
        assert_eq!(find(&leaves, CACHES_AMD, 3).eax, 7 << 14 | 3 << 5 | 3);
        assert_eq!(find(&leaves, SIZES_AMD, 0).ecx, 3 << 12 | 5);
        let amd = find(&leaves, TOPOLOGY_AMD, 0);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (5, 1 << 8 | 2, 0));
        assert!(leaves.iter().all(|e| e.function != TOPOLOGY_V2_AMD));
        for function in [TOPOLOGY, TOPOLOGY_V2] {
            let (threads, package) = (find(&leaves, function, 0), find(&leaves, function, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx), (1, 2, 1 << 8));
            assert_eq!((package.eax, package.ebx, package.ecx), (3, 6, 2 << 8 | 1));
            assert_eq!(find(&leaves, function, 2).ebx, 0);
            assert_eq!(threads.edx, 5);
        }
    }

    #[test]
    fn one_vcpu_is_no_multiprocessor() {
        let topology = Topology { cpus: 1, threads_per_core: 1 };
        let leaves = for_vcpu(&host(), topology, FEATURES, 0);
        assert_eq!(find(&leaves, BASIC, 0).edx & EDX_HTT, 0);
        assert_eq!(find(&leaves, SIZES_AMD, 0).ecx, 0);
        assert_eq!(find(&leaves, TOPOLOGY, 1).eax, 0);
    }

    proptest! {
        #[test]
        fn every_apic_id_fits_the_package(cpus in 1u8..=254, smt in any::<bool>()) {
            let threads_per_core = 1 + u8::from(smt && cpus % 2 == 0);
            let topology = Topology { cpus, threads_per_core };
            prop_assert!(u32::from(cpus - 1) >> topology.package_bits() == 0);
            let leaves = for_vcpu(&host(), topology, FEATURES, cpus - 1);
            let package = find(&leaves, TOPOLOGY, 1);
            prop_assert_eq!(package.ebx, u32::from(cpus));
            prop_assert_eq!(package.edx >> package.eax, 0);
        }
    }
}
