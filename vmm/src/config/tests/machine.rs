// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules about vCPUs, memory, balloon and display.

use proptest::prelude::*;

use super::*;

#[test]
fn every_fault_is_named_at_once() {
    let config = VmConfig {
        machine_config: MachineConfig {
            vcpu_count: 0,
            mem_size_mib: 0,
            ..MachineConfig::default()
        },
        gpu: Some(GpuConfig { width_px: 0, height_px: 5000, scanouts: 17, vnc_socket: None }),
        ..VmConfig::default()
    };
    assert_eq!(
        fields(&config),
        [
            "machine-config.vcpu_count",
            "machine-config.mem_size_mib",
            "boot-source",
            "gpu.width_px",
            "gpu.height_px",
            "gpu.scanouts",
        ]
    );
}

#[test]
fn memory_must_fit_the_host_and_the_balloon_the_memory() {
    let kernel = elf();
    let mut config = bootable(kernel.path());
    assert_eq!(fields(&config), [""; 0]);
    config.machine_config.mem_size_mib = 4097;
    assert_eq!(fields(&config), ["machine-config.mem_size_mib"]);
    config.machine_config.mem_size_mib = 128;
    config.balloon = Some(BalloonConfig {
        amount_mib: 129,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
        blocks: true,
    });
    assert_eq!(fields(&config), ["balloon.amount_mib"]);
}

#[test]
fn backings_have_their_multiples() {
    let kernel = elf();
    let mut config = bootable(kernel.path());
    config.machine_config.mem_size_mib = 129;
    config.memory.backing = Some(BackingKind::Hugetlb2M);
    assert_eq!(fields(&config), ["memory.backing"]);
    config.machine_config.mem_size_mib = 1024;
    config.memory.backing = Some(BackingKind::Hugetlb1G);
    assert_eq!(fields(&config), [""; 0]);
    config.machine_config.huge_pages = HugePages::Transparent;
    assert_eq!(fields(&config), ["memory.backing"]);
    config.memory = MemoryConfig { backing: None, cma_mib: 1024, ..MemoryConfig::default() };
    assert_eq!(fields(&config), ["memory.cma_mib"]);
}

proptest! {
    /// Reading and checking any JSON ends without a panic.
    #[test]
    fn no_number_breaks_validation(
        vcpus: u8, mem: u64, cma: u64, amount: u32, smt: bool, side: u32,
    ) {
        let config = VmConfig {
            machine_config: MachineConfig {
                vcpu_count: vcpus, mem_size_mib: mem, smt, ..MachineConfig::default()
            },
            memory: MemoryConfig { backing: Some(BackingKind::Hugetlb1G), cma_mib: cma, ..MemoryConfig::default() },
            balloon: Some(BalloonConfig {
                amount_mib: amount, deflate_on_oom: false, stats_polling_interval_s: 0,
                free_page_hinting: false, free_page_reporting: false, blocks: true,
            }),
            gpu: Some(GpuConfig { width_px: side, height_px: side, scanouts: side, vnc_socket: None }),
            ..VmConfig::default()
        };
        prop_assert!(config.validate(&HOST).is_err());
        let _ = config.machine_config.memory_bytes();
    }
}

/// Rule by rule: values that a PUT rejects.
#[test]
fn a_change_is_judged_by_the_rules_of_the_start() {
    let faults = |change: fn(&mut VmConfig)| -> Vec<&'static str> {
        let before = VmConfig::default();
        let mut config = before.clone();
        change(&mut config);
        match config.validate_change(&before, &HOST) {
            Ok(()) => Vec::new(),
            Err(faults) => faults.0.iter().map(|fault| fault.field).collect(),
        }
    };
    assert_eq!(faults(|_| ()), [""; 0], "a missing kernel is not missed yet");
    assert_eq!(faults(|c| c.memory.cma_mib = 3), ["memory.cma_mib"]);
    assert_eq!(faults(|c| c.memory.host_budget_mib = 0), ["memory.host_budget_mib"]);
    assert_eq!(faults(|c| c.memory.host_budget_mib = u64::MAX), ["memory.host_budget_mib"]);
    assert_eq!(faults(|c| c.memory.host_mappings = Some(63)), ["memory.host_mappings"]);
    assert_eq!(faults(|c| c.memory.host_mappings = Some(65_531)), ["memory.host_mappings"]);
    assert_eq!(faults(|c| c.memory.host_mappings = Some(65_530)), [""; 0]);
    assert_eq!(faults(|c| c.memory.cma_mib = 128), ["memory.cma_mib"]);
    // More than the longest stretch of RAM: 3 GiB below the hole, 1 GiB above.
    let above_the_longest_stretch = |c: &mut VmConfig| {
        c.machine_config.mem_size_mib = 4096;
        c.memory.cma_mib = 3072;
    };
    assert_eq!(faults(above_the_longest_stretch), ["memory.cma_mib"]);
    assert_eq!(faults(|c| c.memory.backing = Some(BackingKind::Hugetlb1G)), ["memory.backing"]);
    let display = |vnc: &str| {
        Some(GpuConfig { width_px: 64, height_px: 64, scanouts: 1, vnc_socket: Some(vnc.into()) })
    };
    let mut config = VmConfig { gpu: display(""), ..VmConfig::default() };
    let judged = |config: &VmConfig| config.validate_change(&VmConfig::default(), &HOST).is_ok();
    assert!(!judged(&config));
    config.gpu = display(&"x".repeat(108));
    assert!(!judged(&config));
    config.gpu = display(&"x".repeat(107));
    assert!(judged(&config));
}

#[test]
fn an_odd_memory_size_is_rounded_up_to_whole_blocks() {
    let machine = MachineConfig { mem_size_mib: 129, ..MachineConfig::default() };
    assert_eq!(machine.memory_bytes(), 130 << 20);
    let config = VmConfig { machine_config: machine, ..VmConfig::default() };
    assert_eq!(config.validate_change(&VmConfig::default(), &HOST), Ok(()));
    assert_eq!(config.layout().unwrap().ram_pages().bytes().0, 130 << 20);
}
