// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules about disks, network interfaces, sockets and the metadata service.

use super::*;

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
    // A program that runs may be read and not written, by root either.
    let busy = drive("a", &std::env::current_exe().unwrap());
    assert_eq!(fields(&with(vec![busy.clone()])), ["drives.path_on_host"]);
    assert_eq!(fields(&with(vec![DriveConfig { is_read_only: true, ..busy }])), [""; 0]);
    assert_eq!(fields(&with(vec![disk.clone(), disk.clone()])), ["drives.drive_id"]);
    // Letters of any script are letters, as in Firecracker.
    assert_eq!(fields(&with(vec![drive("größe_٣", image.path())])), [""; 0]);
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
        ("host_dev_name", json!(null)),
        ("tcp_ports", json!("2222:22")),
    ] {
        let found = fields(&with(json!([change(field, value)])));
        assert_eq!(found, [format!("network-interfaces.{field}")], "{field}");
    }
    let user = |more: serde_json::Value| {
        let mut interface = json!({ "iface_id": "eth0", "backend": "User" });
        interface.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields(&with(json!([interface])))
    };
    assert_eq!(user(json!({ "mtu": 9000, "tcp_ports": "2222:22,8080" })), [""; 0]);
    for (field, value) in [
        ("host_dev_name", json!("tap0")),
        ("queues", json!(2)),
        ("tcp_ports", json!("")),
        ("tcp_ports", json!("22 --pcap /x")),
    ] {
        let found = user(json!({ field: value }));
        assert_eq!(found, [format!("network-interfaces.{field}")], "{field}");
    }
    let unlimited = json!({ "ops": { "size": 0, "refill_time": 100 } });
    let limited = json!({ "bandwidth": { "size": 1000, "refill_time": 100 } });
    for (choice, limits, expected) in [
        ("On", &unlimited, &[][..]),
        ("Auto", &limited, &[]),
        ("On", &limited, &["network-interfaces.vhost"]),
    ] {
        let mut interface = change("vhost", json!(choice));
        interface["rx_rate_limiter"] = limits.clone();
        assert_eq!(fields(&with(json!([interface]))), expected, "{choice} {limits}");
    }
    assert_eq!(user(json!({ "vhost": "Auto" })), [""; 0]);
    assert_eq!(user(json!({ "vhost": "On" })), ["network-interfaces.vhost"]);
    let mut serving = with(json!([change("vhost", json!("On"))]));
    serving.mmds_config =
        serde_json::from_value(json!({ "network_interfaces": ["eth0"] })).unwrap();
    assert_eq!(fields(&serving), ["network-interfaces.vhost"]);
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
