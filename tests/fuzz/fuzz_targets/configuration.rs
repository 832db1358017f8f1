// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration files: whole ones in which values were replaced, fields added, taken away or moved,
//! and any bytes.
//!
//! The oracle: a configuration can be written and read back unchanged, with the same faults;
//! checking has no side effect; a valid one has a memory layout of the requested size; an array is
//! never accepted as an object.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vmm::config::{HostLimits, VmConfig, from_slice};

/// Numbers at which types and rules end.
const NUMBERS: [i128; 16] = [
    -1,
    0,
    1,
    2,
    3,
    128,
    254,
    255,
    65_535,
    65_536,
    i32::MAX as i128,
    u32::MAX as i128,
    u32::MAX as i128 + 1,
    i64::MAX as i128,
    u64::MAX as i128,
    u64::MAX as i128 + 1,
];

#[derive(Debug, Arbitrary)]
enum Leaf {
    Null,
    Bool(bool),
    Edge(u8),
    Number(i64),
    Float(f32),
    Text(String),
    Long(u16),
    /// The value of another place in the file.
    Like(u16),
    List(u8),
    Object,
    Nested(u8),
}

#[derive(Debug, Arbitrary)]
enum Edit {
    Replace(u16, Leaf),
    Remove(u16),
    Add(u16, String, Leaf),
    /// An object becomes the array of its values.
    Flatten(u16),
    /// A text loses its end, or its case.
    Cut(u16, u8),
    Upper(u16),
}

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Edited { edits: Vec<Edit>, host_mib: u16 },
}

/// Where every input starts from: a file that is valid, or edits would reach nothing.
static WHOLE: LazyLock<Value> = LazyLock::new(|| {
    let file = whole();
    let config: VmConfig = from_slice(file.to_string().as_bytes()).expect("a file of today's form");
    config.validate(&HOST).expect("a valid file");
    file
});

const HOST: HostLimits = HostLimits { memory_mib: 4096, mappings: 65_530 };

/// A kernel that the rules find.
static KERNEL: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("ballast-fuzz-config-{}", std::process::id()));
    let mut head = [0; 64];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // Executable, x86-64.
    (head[16], head[18]) = (2, 62);
    fs::write(&path, head).expect("a file");
    path
});

/// Anything that is no kernel.
static INITRD: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("ballast-fuzz-initrd-{}", std::process::id()));
    fs::write(&path, [0; 4096]).expect("a file");
    path
});

/// Every section, and every field that a file can have.
fn whole() -> Value {
    let limiter = json!({
        "bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": 5},
        "ops": {"size": 10, "refill_time": 100},
    });
    json!({
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": true,
            "cpu_template": "None", "track_dirty_pages": false, "huge_pages": "None"},
        "cpu": {"nested_virtualization": false, "pmu": true},
        "boot-source": {"kernel_image_path": *KERNEL, "initrd_path": *INITRD, "boot_args": "quiet"},
        "memory": {"backing": "thp", "cma_mib": 64, "host_budget_mib": 64,
            "host_mappings": 4096, "host_threads": 64,
            "compaction": {"huge_percent": 90, "interval_s": 30, "only_idle": true,
                "stall_ms": 150, "budget_ms": 200}, "paging": {"pool_mib": 64, "codec": "lz4", "threads": 1}},
        "balloon": {"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1,
            "free_page_hinting": true, "free_page_reporting": true},
        "gpu": {"width_px": 640, "height_px": 480, "scanouts": 1, "vnc_socket": "/tmp/vnc"},
        "console": {"file": "/tmp/console"},
        "logger": {"log_path": "/tmp/log", "level": "Info", "show_level": true,
            "show_log_origin": true, "module": "vmm"},
        "metrics": {"metrics_path": "/tmp/m", "emit_id": true, "properties": {"a": "b"}},
        "drives": [
            {"drive_id": "rootfs", "is_root_device": true, "path_on_host": *KERNEL,
                "is_read_only": true, "cache_type": "Unsafe", "io_engine": "Sync",
                "rate_limiter": limiter, "partuuid": null},
            {"drive_id": "data", "is_root_device": false, "path_on_host": *KERNEL, "queues": 2,
                "format": "Raw", "is_read_only": true},
        ],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0",
            "guest_mac": "06:00:00:00:00:01", "mtu": 1500, "queues": 2,
            "rx_rate_limiter": limiter, "tx_rate_limiter": limiter}],
        "vsock": {"guest_cid": 3, "uds_path": "/tmp/v"},
        "entropy": {"rate_limiter": limiter},
        "pmem": [],
        "mmds-config": null,
        "cpu-config": null,
        "memory-hotplug": null,
    })
}

/// The `pick`th value, counted through the tree.
fn at(value: &mut Value, pick: u16) -> &mut Value {
    fn walk<'a>(value: &'a mut Value, left: &mut usize) -> Result<&'a mut Value, ()> {
        if *left == 0 {
            return Ok(value);
        }
        *left -= 1;
        match value {
            Value::Array(list) => list.iter_mut().find_map(|item| walk(item, left).ok()).ok_or(()),
            Value::Object(map) => map.values_mut().find_map(|item| walk(item, left).ok()).ok_or(()),
            _ => Err(()),
        }
    }
    let mut left = usize::from(pick) % count(value);
    walk(value, &mut left).expect("as many as were counted")
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn leaf(leaf: Leaf, file: &mut Value) -> Value {
    match leaf {
        Leaf::Null => Value::Null,
        Leaf::Bool(on) => on.into(),
        Leaf::Edge(pick) => {
            serde_json::from_str(&NUMBERS[usize::from(pick % 16)].to_string()).expect("a number")
        }
        Leaf::Number(number) => number.into(),
        Leaf::Float(number) => json!(number),
        Leaf::Text(text) => text.into(),
        Leaf::Long(len) => "x".repeat(len.into()).into(),
        Leaf::Like(pick) => at(file, pick).clone(),
        Leaf::List(len) => vec![json!(1); usize::from(len)].into(),
        Leaf::Object => Value::Object(Map::new()),
        Leaf::Nested(depth) => (0..depth).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// The whole file with the edits.
fn edited(edits: Vec<Edit>) -> Value {
    let mut file = WHOLE.clone();
    for edit in edits {
        match edit {
            Edit::Replace(pick, new) => {
                let new = leaf(new, &mut file);
                *at(&mut file, pick) = new;
            }
            Edit::Remove(pick) => match at(&mut file, pick) {
                Value::Object(map) => {
                    let name = map.keys().nth(usize::from(pick) % map.len().max(1)).cloned();
                    name.and_then(|name| map.remove(&name));
                }
                Value::Array(list) => drop(list.pop()),
                other => *other = Value::Null,
            },
            Edit::Add(pick, name, new) => {
                let new = leaf(new, &mut file);
                match at(&mut file, pick) {
                    Value::Object(map) => drop(map.insert(name, new)),
                    Value::Array(list) => list.push(new),
                    other => *other = new,
                }
            }
            Edit::Flatten(pick) => {
                let place = at(&mut file, pick);
                if let Value::Object(map) = place {
                    *place = map.values().cloned().collect::<Vec<_>>().into();
                }
            }
            Edit::Cut(pick, len) => {
                if let Value::String(text) = at(&mut file, pick) {
                    *text = text.chars().take(len.into()).collect();
                }
            }
            Edit::Upper(pick) => {
                if let Value::String(text) = at(&mut file, pick) {
                    text.make_ascii_uppercase();
                }
            }
        }
    }
    file
}

fn check(text: &[u8], host: &HostLimits) {
    let Ok(config) = from_slice::<VmConfig>(text) else { return };
    // A reader that takes arrays for objects takes at least what this one takes, as the same.
    let lenient: VmConfig = serde_json::from_slice(text).expect("what a strict reader takes");
    assert_eq!(lenient, config);
    let written = serde_json::to_vec(&config).expect("what was read can be written");
    let again: VmConfig = from_slice(&written).expect("what was written can be read");
    assert_eq!(again, config);
    let faults = |config: &VmConfig| config.validate(host).map_err(|faults| faults.to_string());
    let judged = faults(&config);
    assert_eq!(judged, faults(&again));
    assert_eq!(again, config, "judging changes nothing");
    if judged.is_ok() {
        let layout = config.layout().expect("what is valid can be laid out");
        assert!(layout.ram_pages().0 >= u64::from(config.machine_config.mem_size_mib) << 8);
        assert!(config.validate_change(&VmConfig::default(), host).is_ok());
    } else {
        let message = judged.expect_err("it has faults");
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    }
}

fuzz_target!(|input: Input| {
    match input {
        Input::Raw(text) => check(&text, &HOST),
        Input::Edited { edits, host_mib } => {
            let host = HostLimits { memory_mib: host_mib.into(), mappings: 65_530 };
            check(edited(edits).to_string().as_bytes(), &host);
        }
    }
});
