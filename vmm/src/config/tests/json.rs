// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The forms of a configuration file.

use super::*;

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
    // Ballast's extensions are listed only if they differ from the default.
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
