// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Diagnosis of an exit that the monitor cannot serve: one line for the user, registers for the log.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MEMORY_FAULT,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;

use crate::exit::{ExitReason, ResetSource};
use crate::kvm;

/// First instruction of a CPU after INIT: nothing is mapped there, as there is no firmware.
const RESET_VECTOR: u64 = 0xffff_fff0;

/// Why KVM cannot run the vCPU any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// KVM_EXIT_INTERNAL_ERROR and its suberror.
    Internal(u32),
    /// KVM_EXIT_FAIL_ENTRY and the hardware's reason.
    Entry(u64),
    /// KVM_EXIT_MEMORY_FAULT at this guest-physical address.
    Memory(u64),
    /// An exit that we did not ask for.
    Unexpected(u32),
}

impl Failure {
    fn read(run: &kvm_run) -> Self {
        match run.exit_reason {
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says which member of the union KVM wrote.
                Self::Internal(unsafe { run.__bindgen_anon_1.internal.suberror })
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let failed = unsafe { run.__bindgen_anon_1.fail_entry };
                Self::Entry(failed.hardware_entry_failure_reason)
            }
            KVM_EXIT_MEMORY_FAULT => {
                // SAFETY: as above.
                Self::Memory(unsafe { run.__bindgen_anon_1.memory_fault.gpa })
            }
            other => Self::Unexpected(other),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Internal(KVM_INTERNAL_ERROR_EMULATION) => {
                "KVM could not emulate an instruction".into()
            }
            Self::Internal(KVM_INTERNAL_ERROR_SIMUL_EX) => {
                "KVM hit an exception while delivering another".into()
            }
            Self::Internal(KVM_INTERNAL_ERROR_DELIVERY_EV) => {
                "KVM could not deliver an interrupt or exception".into()
            }
            Self::Internal(KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON) => {
                "KVM got an unknown hardware exit".into()
            }
            Self::Internal(suberror) => format!("KVM internal error {suberror}"),
            Self::Entry(reason) => {
                format!("VM entry failed, hardware reason {reason:#x}")
            }
            Self::Memory(address) => format!("KVM could not reach guest memory at {address:#x}"),
            Self::Unexpected(reason) => format!("unexpected KVM exit {reason}"),
        }
    }

    /// Whether the guest's own doing may have led here.
    fn by_guest(self) -> bool {
        matches!(self, Self::Internal(_))
    }
}

/// Names the reason why vCPU `number` cannot go on, from its last exit, and logs its registers.
pub(super) fn diagnose(number: u8, vcpu: &mut VcpuFd) -> ExitReason {
    let failure = Failure::read(vcpu.get_kvm_run());
    let at = match vcpu.get_regs() {
        Ok(regs) => {
            tracing::debug!(vcpu = number, ?regs, "registers");
            format!(" at rip {:#x}", regs.rip)
        }
        Err(_) => String::new(),
    };
    if let Ok(sregs) = vcpu.get_sregs() {
        let at = vcpu.get_regs().map_or(0, |regs| sregs.cs.base.wrapping_add(regs.rip));
        if failure.by_guest() && at & 0xffff_ffff == RESET_VECTOR {
            return ExitReason::Reset(ResetSource::ResetVector);
        }
        tracing::debug!(vcpu = number, ?sregs, "special registers");
    }
    reason(number, failure, &at, kvm::cpu_virtualizes())
}

fn reason(number: u8, failure: Failure, at: &str, hardware: bool) -> ExitReason {
    let cause = format!("vCPU {number}: {}{at}", failure.text());
    if !hardware {
        let hint = "the CPU has neither vmx nor svm, so /dev/kvm is a software emulation, which \
                    cannot run every guest";
        return ExitReason::HostError(format!("{cause} ({hint})"));
    }
    if failure.by_guest() { ExitReason::GuestCrashed(cause) } else { ExitReason::HostError(cause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_who_failed() {
        let emulation = Failure::Internal(KVM_INTERNAL_ERROR_EMULATION);
        let crashed = reason(1, emulation, " at rip 0x1000", true);
        assert_eq!(
            crashed.to_string(),
            "guest crashed: vCPU 1: KVM could not emulate an instruction at rip 0x1000"
        );
        assert_eq!(crashed.code(), 2);
        let refused = reason(0, Failure::Entry(0x8000_0021), "", true);
        assert_eq!(refused.code(), 1);
        let software = reason(0, emulation, "", false);
        assert_eq!(software.code(), 1);
        assert!(software.to_string().contains("software emulation"));
        assert!(!software.to_string().contains('\n'));
    }

    #[test]
    fn the_union_is_read_by_the_exit_reason() {
        let mut run = kvm_run { exit_reason: KVM_EXIT_INTERNAL_ERROR, ..Default::default() };
        run.__bindgen_anon_1.internal.suberror = 3;
        assert_eq!(Failure::read(&run), Failure::Internal(3));
        run.exit_reason = KVM_EXIT_FAIL_ENTRY;
        run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason = 7;
        assert_eq!(Failure::read(&run), Failure::Entry(7));
        run.exit_reason = 0;
        assert_eq!(Failure::read(&run), Failure::Unexpected(0));
    }
}
