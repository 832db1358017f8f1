// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Firecracker's metric groups (version 1.17), for programs that expect these fields: values that
//! Ballast does not count, or has no device for, are 0.

use serde_json::{Map, Value, json};

use super::sums::{add, merge};

/// Groups and their fields. A field that ends in `_agg` is an object of [`AGGREGATE`].
const GROUPS: &[(&str, &[&str])] = &[
    ("api_server", &["process_startup_time_us", "process_startup_time_cpu_us"]),
    (
        "balloon",
        &[
            "activate_fails",
            "inflate_count",
            "stats_updates_count",
            "stats_update_fails",
            "deflate_count",
            "event_fails",
            "free_page_report_count",
            "free_page_report_freed",
            "free_page_report_fails",
            "free_page_hint_count",
            "free_page_hint_freed",
            "free_page_hint_fails",
        ],
    ),
    (
        "block",
        &[
            "activate_fails",
            "cfg_fails",
            "no_avail_buffer",
            "event_fails",
            "execute_fails",
            "invalid_reqs_count",
            "flush_count",
            "queue_event_count",
            "rate_limiter_event_count",
            "update_count",
            "update_fails",
            "read_bytes",
            "write_bytes",
            "read_count",
            "write_count",
            "read_agg",
            "write_agg",
            "rate_limiter_throttled_events",
            "io_engine_throttled_events",
            "remaining_reqs_count",
        ],
    ),
    ("deprecated_api", &["deprecated_http_api_calls"]),
    (
        "entropy",
        &[
            "activate_fails",
            "entropy_event_fails",
            "entropy_event_count",
            "entropy_bytes",
            "host_rng_fails",
            "entropy_rate_limiter_throttled",
            "rate_limiter_event_count",
        ],
    ),
    (
        "get_api_requests",
        &[
            "instance_info_count",
            "machine_cfg_count",
            "mmds_count",
            "vmm_version_count",
            "hotplug_memory_count",
        ],
    ),
    (
        "i8042",
        &[
            "error_count",
            "missed_read_count",
            "missed_write_count",
            "read_count",
            "reset_count",
            "write_count",
        ],
    ),
    ("interrupts", &["triggers", "config_updates"]),
    (
        "latencies_us",
        &[
            "full_create_snapshot",
            "diff_create_snapshot",
            "load_snapshot",
            "pause_vm",
            "resume_vm",
            "vmm_full_create_snapshot",
            "vmm_diff_create_snapshot",
            "vmm_load_snapshot",
            "vmm_pause_vm",
            "vmm_resume_vm",
        ],
    ),
    (
        "logger",
        &["missed_metrics_count", "metrics_fails", "missed_log_count", "rate_limited_log_count"],
    ),
    (
        "memory_hotplug",
        &[
            "activate_fails",
            "queue_event_fails",
            "queue_event_count",
            "plug_agg",
            "plug_count",
            "plug_bytes",
            "plug_fails",
            "unplug_agg",
            "unplug_count",
            "unplug_bytes",
            "unplug_fails",
            "unplug_discard_fails",
            "unplug_all_agg",
            "unplug_all_count",
            "unplug_all_fails",
            "state_agg",
            "state_count",
            "state_fails",
        ],
    ),
    (
        "mmds",
        &[
            "rx_accepted",
            "rx_accepted_err",
            "rx_accepted_unusual",
            "rx_bad_eth",
            "rx_invalid_token",
            "rx_no_token",
            "rx_count",
            "tx_bytes",
            "tx_count",
            "tx_errors",
            "tx_frames",
            "connections_created",
            "connections_destroyed",
        ],
    ),
    (
        "net",
        &[
            "activate_fails",
            "cfg_fails",
            // Of older versions; their clients ask for it.
            "mac_address_updates",
            "no_rx_avail_buffer",
            "no_tx_avail_buffer",
            "event_fails",
            "rx_queue_event_count",
            "rx_event_rate_limiter_count",
            "rx_rate_limiter_throttled",
            "rx_tap_event_count",
            "rx_bytes_count",
            "rx_packets_count",
            "rx_fails",
            "rx_count",
            "tap_read_fails",
            "tap_write_fails",
            "tap_write_agg",
            "tx_bytes_count",
            "tx_malformed_frames",
            "tx_fails",
            "tx_count",
            "tx_packets_count",
            "tx_queue_event_count",
            "tx_rate_limiter_event_count",
            "tx_rate_limiter_throttled",
            "tx_spoofed_mac_count",
            "tx_remaining_reqs_count",
        ],
    ),
    (
        "patch_api_requests",
        &[
            "drive_count",
            "drive_fails",
            "network_count",
            "network_fails",
            "machine_cfg_count",
            "machine_cfg_fails",
            "mmds_count",
            "mmds_fails",
            "hotplug_memory_count",
            "hotplug_memory_fails",
            "pmem_count",
            "pmem_fails",
        ],
    ),
    (
        "pmem",
        &[
            "activate_fails",
            "cfg_fails",
            "event_fails",
            "queue_event_count",
            "rate_limiter_throttled_events",
            "rate_limiter_event_count",
        ],
    ),
    (
        "put_api_requests",
        &[
            "actions_count",
            "actions_fails",
            "boot_source_count",
            "boot_source_fails",
            "drive_count",
            "drive_fails",
            "logger_count",
            "logger_fails",
            "machine_cfg_count",
            "machine_cfg_fails",
            "cpu_cfg_count",
            "cpu_cfg_fails",
            "metrics_count",
            "metrics_fails",
            "network_count",
            "network_fails",
            "mmds_count",
            "mmds_fails",
            "vsock_count",
            "vsock_fails",
            "pmem_count",
            "pmem_fails",
            "serial_count",
            "serial_fails",
            "hotplug_memory_count",
            "hotplug_memory_fails",
        ],
    ),
    ("seccomp", &["num_faults"]),
    ("signals", &["sigbus", "sigsegv", "sigxfsz", "sigxcpu", "sigpipe", "sighup", "sigill"]),
    (
        "uart",
        &[
            "error_count",
            "flush_count",
            "missed_read_count",
            "missed_write_count",
            "read_count",
            "write_count",
            "rate_limiter_dropped_bytes",
        ],
    ),
    (
        "vcpu",
        &[
            "exit_io_in",
            "exit_io_out",
            "exit_mmio_read",
            "exit_mmio_write",
            "failures",
            "kvmclock_ctrl_fails",
            "exit_io_in_agg",
            "exit_io_out_agg",
            "exit_mmio_read_agg",
            "exit_mmio_write_agg",
        ],
    ),
    ("vmm", &["panic_count"]),
    (
        "vsock",
        &[
            "activate_fails",
            "cfg_fails",
            "rx_queue_event_fails",
            "tx_queue_event_fails",
            "ev_queue_event_fails",
            "muxer_event_fails",
            "conn_event_fails",
            "rx_queue_event_count",
            "tx_queue_event_count",
            "rx_bytes_count",
            "tx_bytes_count",
            "rx_packets_count",
            "tx_packets_count",
            "conns_added",
            "conns_killed",
            "conns_removed",
            "killq_resync",
            "tx_flush_fails",
            "tx_write_fails",
            "rx_read_fails",
        ],
    ),
];

/// Fields of a latency that is summed up.
const AGGREGATE: [&str; 3] = ["min_us", "max_us", "sum_us"];

/// Groups of gauges, not counters.
const GAUGE_GROUPS: [&str; 5] = ["api_server", "latencies_us", "seccomp", "signals", "vmm"];

/// Fields of any group that are values of now.
const GAUGE_FIELDS: [&str; 2] = ["min_us", "max_us"];

/// Whether the number at `path` is a gauge: lines contain its value, not a difference.
pub(super) fn is_gauge(path: &[&str]) -> bool {
    path.first().is_some_and(|group| GAUGE_GROUPS.contains(group))
        || path.last().is_some_and(|field| GAUGE_FIELDS.contains(field))
        || path.iter().any(|name| name.starts_with("longest_"))
        || matches!(path, ["budgets", _, "limit" | "used" | "peak"])
}

/// All groups, with every field 0.
fn zeroed() -> Map<String, Value> {
    let zeros = |fields: &[&str]| -> Value {
        fields.iter().map(|name| ((*name).to_owned(), json!(0))).collect()
    };
    let field = |name: &str| if name.ends_with("_agg") { zeros(&AGGREGATE) } else { json!(0) };
    let group = |fields: &[&str]| -> Value {
        fields.iter().map(|name| ((*name).to_owned(), field(name))).collect()
    };
    GROUPS.iter().map(|(name, fields)| ((*name).to_owned(), group(fields))).collect()
}

/// Completes `counted` to all of Firecracker's groups and fields. Groups of single devices, such as
/// `block_rootfs`, are added up in the group of their kind, as Firecracker does.
pub fn completed(counted: Map<String, Value>) -> Map<String, Value> {
    let mut all = zeroed();
    for (name, value) in counted {
        let kind = ["block", "net", "pmem"]
            .into_iter()
            .find(|kind| name.strip_prefix(kind).is_some_and(|device| device.starts_with('_')));
        if let Some(kind) = kind {
            add(all.entry(kind).or_insert_with(|| json!({})), &value);
        }
        merge(all.entry(name).or_insert(Value::Null), value);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_value_of_now_and_its_refusals_are_counts() {
        assert!(is_gauge(&["budgets", "gpu", "used"]));
        assert!(!is_gauge(&["budgets", "gpu", "refusals"]));
        assert!(!is_gauge(&["gpu", "used"]));
    }

    #[test]
    fn every_group_is_complete_and_counts_take_their_places() {
        let counted = json!({
            "balloon": {"inflate_count": 3, "evacuated_blocks": 1},
            "block_a": {"read_count": 1, "read_agg": {"min_us": 3, "max_us": 5, "sum_us": 8}},
            "block_b": {"read_count": 2, "read_agg": {"min_us": 2, "max_us": 4, "sum_us": 6}},
            "block_c": {"read_agg": {"min_us": 0, "max_us": 0, "sum_us": 0}},
            "gpu": {"flushes": 4},
        });
        let Value::Object(counted) = counted else { unreachable!() };
        let all = completed(counted);
        assert_eq!(all.len(), GROUPS.len() + 4);
        assert_eq!(all["balloon"]["inflate_count"], 3);
        assert_eq!(all["balloon"]["event_fails"], 0);
        assert_eq!(all["balloon"]["evacuated_blocks"], 1);
        assert_eq!(all["block"]["read_count"], 3);
        assert_eq!(all["block"]["read_agg"], json!({"min_us": 2, "max_us": 5, "sum_us": 14}));
        assert_eq!(all["block_a"]["read_count"], 1);
        assert_eq!(all["vcpu"]["exit_io_in_agg"], json!({"min_us": 0, "max_us": 0, "sum_us": 0}));
    }
}
