// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vCPUs: CPUID, MSRs and local APIC of each, and the boot vCPU at the kernel's first instruction.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};
use mm::guest_ram::GuestRam;

use super::error::BuildError;
use crate::arch::cpuid::{self, Features, Topology};
use crate::arch::denied::{self, Wanted};
use crate::arch::kernel::LoadedKernel;
use crate::arch::registers;
use crate::config::{CpuConfig, VmConfig};
use crate::vcpu::{Surroundings, Vcpu};

/// Creates the vCPUs of `config`; the first one starts at `kernel`'s entry point.
pub(super) fn create(
    kvm: &Kvm,
    vm: &VmFd,
    config: &VmConfig,
    ram: &GuestRam,
    kernel: &LoadedKernel,
    around: &Surroundings,
) -> Result<Vec<Vcpu>, BuildError> {
    let CpuConfig { nested_virtualization, pmu } = config.cpu;
    let wanted = Wanted { nested: nested_virtualization, pmu };
    denied::restrict_msrs(kvm, vm, wanted)
        .map_err(BuildError::machine("deny model-specific registers"))?;
    let config = &config.machine_config;
    let cpus = config.vcpu_count;
    let limit = kvm.get_max_vcpus();
    if usize::from(cpus) > limit {
        return Err(BuildError::TooManyVcpus { asked: cpus, limit });
    }
    let topology = Topology { cpus, threads_per_core: if config.smt && cpus > 1 { 2 } else { 1 } };
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(BuildError::machine("report supported CPUID"))?;
    let supported: &[kvm_cpuid_entry2] = supported.as_slice();
    let features = Features {
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        amd: Features::is_amd(supported),
    };
    let mut vcpus = Vec::with_capacity(cpus.into());
    for number in 0..cpus {
        let fd = vm.create_vcpu(number.into()).map_err(BuildError::machine("create a vCPU"))?;
        let mut leaves = cpuid::for_vcpu(supported, topology, features, number);
        denied::restrict_cpuid(&mut leaves, wanted);
        // Fails for lists longer than KVM's limit only, which it then names itself.
        let leaves = CpuId::from_entries(&leaves[..leaves.len().min(KVM_MAX_CPUID_ENTRIES)])
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
            .map_err(BuildError::machine("set the CPUID of a vCPU"))?;
        fd.set_cpuid2(&leaves).map_err(BuildError::machine("set the CPUID of a vCPU"))?;
        registers::setup_common(&fd)?;
        if number == 0 {
            registers::setup_boot(&fd, ram.memory().as_ref(), kernel.entry)?;
        }
        vcpus.push(Vcpu::new(number, fd, around.clone()));
    }
    Ok(vcpus)
}
