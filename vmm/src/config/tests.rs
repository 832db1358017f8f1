// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::io::Write;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const HOST: HostLimits = HostLimits { memory_mib: 4096, mappings: HostLimits::DEFAULT_MAPPINGS };

fn elf() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"\x7fELF\x02\x01\x01").unwrap();
    file
}

fn bootable(kernel: &Path) -> VmConfig {
    let boot =
        BootSource { kernel_image_path: kernel.to_owned(), initrd_path: None, boot_args: None };
    VmConfig { boot_source: Some(boot), ..VmConfig::default() }
}

fn fields(config: &VmConfig) -> Vec<&'static str> {
    match config.validate(&HOST) {
        Ok(()) => Vec::new(),
        Err(faults) => faults.0.iter().map(|fault| fault.field).collect(),
    }
}

#[test]
fn defaults_are_firecrackers() {
    let config: VmConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(config.machine_config.vcpu_count, 1);
    assert_eq!(config.machine_config.mem_size_mib, 128);
    assert_eq!(config.backing(), BackingKind::Thp);
    assert_eq!(config.console, ConsoleConfig::Tty);
}

#[test]
fn a_firecracker_file_is_taken_whole() {
    let config: VmConfig = serde_json::from_value(json!({
        "balloon": {"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1,
            "free_page_hinting": false, "free_page_reporting": true},
        "drives": [],
        "boot-source": {"kernel_image_path": "/k", "initrd_path": null, "boot_args": "quiet"},
        "cpu-config": null,
        "logger": {"log_path": "/log", "level": "INFO", "show_level": true},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": false,
            "cpu_template": "None", "track_dirty_pages": false, "huge_pages": "2M"},
        "metrics": null,
        "memory-hotplug": null,
        "mmds-config": null,
        "network-interfaces": [],
        "pmem": [],
        "vsock": null,
        "entropy": null,
    }))
    .unwrap();
    assert_eq!(config.backing(), BackingKind::Hugetlb2M);
    assert_eq!(config.logger.unwrap().level, Some(LogLevel::Info));
    let balloon = config.balloon.unwrap();
    assert!(balloon.free_page_reporting && balloon.blocks);
    // What Firecracker does not know is told only where it is not as ever.
    let told =
        |balloon: &BalloonConfig| serde_json::to_value(balloon).unwrap().get("blocks").cloned();
    assert_eq!(told(&balloon), None);
    assert_eq!(told(&BalloonConfig { blocks: false, ..balloon }), Some(json!(false)));
}

#[test]
fn what_is_written_can_be_read_back() {
    let config = VmConfig {
        console: ConsoleConfig::File("/c".into()),
        balloon: Some(BalloonConfig {
            amount_mib: 1,
            deflate_on_oom: false,
            stats_polling_interval_s: 0,
            free_page_hinting: true,
            free_page_reporting: false,
            blocks: true,
        }),
        gpu: Some(GpuConfig {
            width_px: 1,
            height_px: 2,
            scanouts: 3,
            vnc_socket: Some("/v".into()),
        }),
        ..bootable(Path::new("/k"))
    };
    let text = serde_json::to_value(&config).unwrap();
    assert_eq!(text["drives"], json!([]));
    assert_eq!(text["vsock"], json!(null));
    assert_eq!(serde_json::from_value::<VmConfig>(text).unwrap(), config);
}

#[test]
fn devices_that_are_not_there_are_refused_by_name() {
    for section in ["cpu-config", "memory-hotplug", "serial"] {
        let error = serde_json::from_value::<VmConfig>(json!({ section: {} })).unwrap_err();
        assert!(error.to_string().contains("does not offer"), "{section}: {error}");
    }
    let error = serde_json::from_value::<VmConfig>(json!({ "pmem": [{}] })).unwrap_err();
    assert!(error.to_string().contains("does not offer"), "{error}");
}

fn drive(id: &str, path: &Path) -> DriveConfig {
    let text = json!({ "drive_id": id, "is_root_device": false, "path_on_host": path });
    serde_json::from_value(text).unwrap()
}

#[test]
fn disks_are_looked_at() {
    let (kernel, image) = (elf(), tempfile::NamedTempFile::new().unwrap());
    let with = |drives: Vec<DriveConfig>| VmConfig { drives, ..bootable(kernel.path()) };
    let disk = drive("a_1", image.path());
    assert_eq!(fields(&with(vec![disk.clone()])), [""; 0]);
    let cases = [
        (DriveConfig { drive_id: "a-1".into(), ..disk.clone() }, "drives.drive_id"),
        (DriveConfig { drive_id: String::new(), ..disk.clone() }, "drives.drive_id"),
        (DriveConfig { path_on_host: None, ..disk.clone() }, "drives.path_on_host"),
        (drive("a", Path::new("/no/such/image")), "drives.path_on_host"),
        (drive("a", Path::new("/")), "drives.path_on_host"),
        (drive("a", Path::new("/dev/null")), "drives.path_on_host"),
        (DriveConfig { socket: Some("/s".into()), ..disk.clone() }, "drives.socket"),
        (DriveConfig { partuuid: Some("a b".into()), ..disk.clone() }, "drives.partuuid"),
        (DriveConfig { queues: 0, ..disk.clone() }, "drives.queues"),
        (DriveConfig { queues: 17, ..disk.clone() }, "drives.queues"),
    ];
    for (drive, field) in cases {
        assert_eq!(fields(&with(vec![drive.clone()])), [field], "{drive:?}");
    }
    assert_eq!(fields(&with(vec![disk.clone(), disk.clone()])), ["drives.drive_id"]);
    let root = |id: &str| DriveConfig { is_root_device: true, ..drive(id, image.path()) };
    assert_eq!(fields(&with(vec![root("a"), root("b")])), ["drives.is_root_device"]);
}

#[test]
fn the_root_device_comes_first_and_is_on_the_command_line() {
    let root = DriveConfig { is_root_device: true, ..drive("b", Path::new("/i")) };
    let mut disks = vec![drive("a", Path::new("/i")), root.clone()];
    let order: Vec<_> = drives::in_order(&disks).map(|drive| drive.drive_id.as_str()).collect();
    assert_eq!(order, ["b", "a"]);
    assert_eq!(drives::root_argument(&disks).unwrap(), "root=/dev/vda rw");
    let uuid = Some("01-ab".to_owned());
    drives::set(&mut disks, DriveConfig { partuuid: uuid, is_read_only: true, ..root });
    assert_eq!(disks.len(), 2);
    assert_eq!(drives::root_argument(&disks).unwrap(), "root=PARTUUID=01-ab ro");
    assert_eq!(drives::root_argument(&disks[..1]), None);
}

#[test]
fn a_disk_says_no_more_than_firecracker_unless_it_differs() {
    let disk = drive("a", Path::new("/i"));
    let text = serde_json::to_value(&disk).unwrap();
    for field in ["format", "backing_files", "queues"] {
        assert!(text.get(field).is_none(), "{field}");
    }
    let disk = DriveConfig { format: ImageFormat::Qcow2, queues: 4, backing_files: true, ..disk };
    let text = serde_json::to_value(&disk).unwrap();
    assert_eq!((&text["format"], &text["queues"]), (&json!("Qcow2"), &json!(4)));
    assert_eq!(serde_json::from_value::<DriveConfig>(text).unwrap(), disk);
}

#[test]
fn network_interfaces_are_looked_at() {
    let kernel = elf();
    let with = |interfaces: serde_json::Value| VmConfig {
        network_interfaces: serde_json::from_value(interfaces).unwrap(),
        ..bootable(kernel.path())
    };
    let good =
        json!({"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01"});
    assert_eq!(fields(&with(json!([good]))), [""; 0]);
    let change = |field: &str, value: serde_json::Value| {
        let mut interface = good.clone();
        interface[field] = value;
        interface
    };
    for (field, value) in [
        ("iface_id", json!("")),
        ("iface_id", json!("a/b")),
        ("host_dev_name", json!("")),
        ("host_dev_name", json!("0123456789abcdef")),
        ("guest_mac", json!("01:00:00:00:00:01")),
        ("mtu", json!(67)),
        ("queues", json!(9)),
    ] {
        let found = fields(&with(json!([change(field, value)])));
        assert_eq!(found, [format!("network-interfaces.{field}")], "{field}");
    }
    let second = change("iface_id", json!("eth1"));
    let found = fields(&with(json!([good, second])));
    assert_eq!(found, ["network-interfaces.host_dev_name", "network-interfaces.guest_mac"]);
    for mac in ["", "06:00", "06-00-00-00-00-01", "0x:00:00:00:00:01", "06:00:00:00:00:01:02"] {
        assert!(mac.parse::<MacAddress>().is_err(), "{mac}");
    }
    assert_eq!("06:00:AC:10:00:02".parse::<MacAddress>().unwrap().to_string(), "06:00:ac:10:00:02");
}

#[test]
fn a_socket_device_is_looked_at() {
    let kernel = elf();
    let with = |guest_cid, path: &str| VmConfig {
        vsock: Some(VsockConfig { guest_cid, uds_path: path.into(), vsock_id: None }),
        ..bootable(kernel.path())
    };
    assert_eq!(fields(&with(3, "/s")), [""; 0]);
    for cid in [0, 2, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(fields(&with(cid, "/s")), ["vsock.guest_cid"], "{cid}");
    }
    for path in ["".to_owned(), "/".repeat(108)] {
        assert_eq!(fields(&with(3, &path)), ["vsock.uds_path"], "{path}");
    }
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    for text in [
        json!({"x": 1}),
        json!({"machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "x": 1}}),
        json!({"boot-source": {"kernel_image_path": "", "x": 1}}),
        json!({"balloon": {"amount_mib": 1, "deflate_on_oom": true, "x": 1}}),
        json!({"memory": {"x": 1}}),
        json!({"gpu": {"width_px": 1, "height_px": 1, "x": 1}}),
        json!({"logger": {"x": 1}}),
        json!({"drives": [{"drive_id": "a", "is_root_device": true, "x": 1}]}),
        json!({"entropy": {"rate_limiter": {"ops": {"size": 1, "refill_time": 1, "x": 1}}}}),
    ] {
        let error = serde_json::from_value::<VmConfig>(text.clone()).unwrap_err();
        assert!(error.to_string().contains("unknown field `x`"), "{text}: {error}");
    }
}

#[test]
fn console_forms() {
    let read = |value| serde_json::from_value::<ConsoleConfig>(value).ok();
    assert_eq!(read(json!("tty")), Some(ConsoleConfig::Tty));
    assert_eq!(read(json!("null")), Some(ConsoleConfig::Null));
    assert_eq!(read(json!({"file": "/c"})), Some(ConsoleConfig::File("/c".into())));
    assert_eq!(read(json!({"file": "/c", "x": 1})), None);
    assert_eq!(read(json!("x")), None);
}

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

#[test]
fn kernel_and_initrd_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let mut config = bootable(&none);
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);

    // A directory, a FIFO, something else, something short.
    config.boot_source.as_mut().unwrap().kernel_image_path = dir.path().to_owned();
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    config.boot_source.as_mut().unwrap().kernel_image_path = fifo;
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);
    let text = dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    config.boot_source.as_mut().unwrap().kernel_image_path = text;
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);

    let mut image = vec![0; 0x202];
    image.extend(b"HdrS");
    let bzimage = dir.path().join("bzImage");
    std::fs::write(&bzimage, image).unwrap();
    let boot = config.boot_source.as_mut().unwrap();
    boot.kernel_image_path = bzimage;
    boot.initrd_path = Some(none);
    assert_eq!(fields(&config), ["boot-source.initrd_path"]);
}

proptest! {
    /// Whatever JSON comes, reading and judging it ends without a panic.
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

/// Rule by rule: what a PUT would refuse, although nothing is missing yet.
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

#[test]
fn a_command_line_must_fit_with_what_the_machine_adds() {
    let kernel = elf();
    let fits = |len: usize, prefix: &str, cma_mib: u64| {
        let mut config = bootable(kernel.path());
        config.memory.cma_mib = cma_mib;
        let boot = config.boot_source.as_mut().unwrap();
        boot.boot_args = Some(format!("{prefix}{}", "x".repeat(len - prefix.len())));
        config.validate(&HOST).is_ok()
    };
    assert!(fits(2047, "", 0));
    assert!(!fits(2048, "", 0));
    assert!(!fits(2047, "", 64));
    for option in ["acpi=off ", "acpi=noirq ", "noapic ", "nolapic "] {
        assert!(!fits(2047, option, 0), "{option}");
        assert!(fits(1200, option, 64), "{option}");
    }
    let mut config = bootable(kernel.path());
    config.boot_source.as_mut().unwrap().boot_args = Some("a\nb".into());
    assert_eq!(fields(&config), ["boot-source.boot_args"]);
}

#[test]
fn templates_are_taken_by_their_old_names_and_deprecated() {
    let read = |template: serde_json::Value| {
        let value = json!({"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": template});
        serde_json::from_value::<MachineConfig>(value).map(|machine| machine.cpu_template)
    };
    for name in ["None", "C3", "T2", "T2S", "T2CL", "T2A", "V1N1"] {
        let template = read(json!(name)).unwrap();
        assert!(template.is_named(), "{name}");
        assert_eq!(serde_json::to_value(template).unwrap(), json!(name));
    }
    assert!(!read(json!(null)).unwrap().is_named());
    assert!(read(json!("T3")).is_err());
}

#[test]
fn the_metadata_service_needs_interfaces_and_a_link_local_address() {
    let interface = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
    let section = |mmds: serde_json::Value| {
        let text = json!({ "network-interfaces": [interface], "mmds-config": mmds });
        let config: VmConfig = serde_json::from_value(text).unwrap();
        VmConfig { boot_source: bootable(Path::new("/k")).boot_source, ..config }
    };
    let faults = |mmds: serde_json::Value| {
        let config = section(mmds);
        let faults = config.validate_change(&config, &HOST).err().unwrap_or_default();
        faults.0.iter().map(|fault| fault.field).collect::<Vec<_>>()
    };
    assert_eq!(faults(json!({ "network_interfaces": ["eth0"] })), [""; 0]);
    for address in ["169.254.1.0", "169.254.254.255", "169.254.169.254"] {
        let mmds = json!({ "network_interfaces": ["eth0"], "ipv4_address": address });
        assert_eq!(faults(mmds), [""; 0], "{address}");
    }
    for address in ["10.0.0.1", "169.254.0.1", "169.254.255.1", "255.255.255.255"] {
        let mmds = json!({ "network_interfaces": ["eth0"], "ipv4_address": address });
        assert_eq!(faults(mmds), ["mmds-config.ipv4_address"], "{address}");
    }
    for names in [json!([]), json!(["eth1"]), json!(["eth0", ""])] {
        let mmds = json!({ "network_interfaces": names });
        assert_eq!(faults(mmds), ["mmds-config.network_interfaces"], "{names}");
    }
}
