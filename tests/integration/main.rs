// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests with real guests, in one program that `cargo xtask test` runs where KVM works. No test
//! asserts a time: machines differ. Time limits only stop hung tests.
//!
//! - `boot.rs`         kernels, memory sizes, ways to stop, leftovers
//! - `balloon.rs`      memory given back and taken again, statistics, out of memory
//! - `evacuation.rs`   whole blocks from a fragmented guest, and evacuated on request
//! - `free_pages.rs`   memory returned without the balloon: reporting, hinting
//! - `compaction.rs`   host-side compaction while guests run
//! - `compaction_hosts.rs` the same on hosts that lack features, and with every kind of memory
//! - `contiguous.rs`   contiguous memory for the guest's devices: its backing and its users
//! - `framework.rs`    Linux's movable pages in our guest: balloon, zram, CMA
//! - `gpu.rs`          GPU buffers that move: their bytes, fragmentation
//! - `gpu_cma.rs`      GPU buffers in the CMA region
//! - `gpu_stress.rs`   the same with everything at once
//! - `debian.rs`       Debian in interactive use, by `resources/debian.json`
//! - `devices.rs`      disks, network, vsock and random numbers
//! - `vhost_net.rs`   frames that the host's kernel moves; part of a test of `devices.rs`
//! - `failing_disks.rs` images that are full, cut off, deleted or broken; a monitor that is killed
//! - `display.rs`      Debian's console and a client of its own on a scanout
//! - `many_guests.rs`  many guests, side by side and one after another; on request
//! - `paging.rs`       parked memory: parked and brought back under load
//! - `policy.rs`       the memory policy: a client's balloon, and hosts that lack features
//! - `pause.rs`        pause and resume under load
//! - `api.rs` the HTTP API: Firecracker's start sequence, and misbehaving clients
//! - `command_line.rs` invalid flags and files

mod api;
mod balloon;
mod boot;
mod command_line;
mod compaction;
mod compaction_hosts;
mod contiguous;
mod debian;
mod devices;
mod display;
mod evacuation;
mod failing_disks;
mod framework;
mod free_pages;
mod gpu;
mod gpu_cma;
mod gpu_stress;
mod many_guests;
mod paging;
mod pause;
mod policy;
mod vhost_net;

use std::process::ExitCode;

use harness::runner::Test;
use harness::test;

const TESTS: &[Test] = &[
    test!(command_line::rejects_invalid_flags, 60),
    test!(command_line::reports_missing_host_memory, 60),
    test!(command_line::rejects_a_file_that_is_not_a_kernel, 60),
    test!(command_line::rejects_an_unreadable_initrd, 60),
    test!(command_line::names_the_group_that_may_use_kvm, 60),
    test!(command_line::replaces_stale_sockets_only, 180),
    test!(boot::elf_kernel, 180),
    test!(boot::bz_image_with_two_cpus, 180),
    test!(boot::debian_kernel, 300),
    test!(boot::memory_of_128_mib, 180),
    test!(boot::memory_of_5_gib, 240),
    test!(boot::reboot_ends_the_monitor, 180),
    test!(boot::triple_fault_ends_the_monitor, 180),
    test!(boot::reboot_without_an_option_ends_the_monitor, 300),
    test!(boot::jump_to_firmware_ends_the_monitor, 180),
    test!(boot::without_acpi_all_cpus_and_devices_are_found, 240),
    test!(boot::without_an_ioapic_devices_work, 240),
    test!(boot::guest_panic_ends_the_monitor, 180),
    test!(devices::disks, 400),
    test!(devices::file_system_under_the_balloon, 600),
    test!(devices::vsock, 400),
    test!(devices::network, 400),
    test!(failing_disks::the_guest_sees_errors_and_goes_on, 400),
    test!(failing_disks::flushed_data_survives_a_killed_monitor, 400),
    test!(debian::a_person_can_work_in_it, 900),
    test!(balloon::half_of_memory_and_back, 300),
    test!(balloon::statistics_agree_with_the_guest, 240),
    test!(balloon::deflates_rather_than_running_out_of_memory, 300),
    test!(balloon::memory_in_use_is_left_alone, 300),
    test!(balloon::rejects_invalid_targets, 180),
    test!(balloon::follows_targets_that_change_on_the_way, 300),
    test!(balloon::a_driver_can_be_unloaded_and_loaded_again, 400),
    test!(free_pages::freed_memory_is_reported, 240),
    test!(free_pages::free_memory_is_hinted_on_request, 300),
    test!(free_pages::poisoned_pages_are_left_alone, 240),
    test!(framework::balloon_pages_migrate, 240),
    test!(framework::zram_pages_migrate, 240),
    test!(framework::contiguous_memory_over_zram_and_balloon_pages, 240),
    test!(evacuation::blocks_from_a_fragmented_guest, 300),
    test!(evacuation::evacuates_blocks_in_use, 300),
    test!(evacuation::a_block_with_a_pinned_page_is_busy, 240),
    test!(evacuation::rejects_invalid_ranges, 180),
    test!(compaction::blocks_replace_single_pages, 300),
    test!(compaction::a_stock_guest_is_made_huge_again, 300),
    test!(compaction::the_background_policy_runs_passes, 240),
    test!(compaction::recognises_guests_that_reset_or_hang, 240),
    test!(compaction::rejects_invalid_passes, 240),
    test!(compaction_hosts::hosts_without_huge_pages, 300),
    test!(compaction_hosts::works_on_kernels_without_newer_calls, 240),
    test!(compaction_hosts::every_kind_of_memory, 300),
    test!(compaction_hosts::a_gigantic_page, 240),
    test!(contiguous::backs_the_region_on_request, 240),
    test!(contiguous::reports_how_the_region_is_used, 240),
    test!(contiguous::pictures_are_made_huge_at_once, 300),
    test!(contiguous::requests_succeed_while_blocks_are_evacuated, 420),
    test!(contiguous::balloon_leaves_ordinary_memory_to_the_kernel, 300),
    test!(compaction_hosts::a_limit_on_memory, 240),
    test!(gpu::buffers_move_while_in_use, 420),
    test!(gpu::exported_buffers_stay, 240),
    test!(gpu_cma::exported_buffers_leave_cma, 240),
    test!(gpu_cma::buffers_are_charged_to_a_control_group, 240),
    test!(gpu_cma::cma_is_filled_before_memory_runs_out, 300),
    test!(gpu_cma::contiguous_memory_over_gpu_pages, 300),
    test!(gpu_cma::failed_requests_leave_the_kernel_memory, 300),
    test!(display::shows_debians_console_and_modetest, 420),
    test!(paging::a_parked_guest_gives_its_memory_to_the_host, 300),
    test!(paging::a_guest_is_trimmed_first, 300),
    test!(paging::nothing_is_lost_however_often_it_is_parked, 900),
    test!(paging::buffers_of_the_display_stay, 300),
    test!(paging::memory_of_small_pages, 300),
    test!(paging::parking_that_cannot_be, 300),
    test!(paging::memory_of_other_kinds, 240),
    test!(policy::the_clients_balloon_wins, 400),
    test!(policy::a_host_without_userfaultfd, 240),
    test!(policy::a_host_that_is_short_when_memory_is_wanted, 300),
    test!(on request policy::two_guests_compete, 900),
    test!(pause::under_load, 240),
    test!(on request many_guests::twenty_side_by_side, 1800),
    test!(on request many_guests::a_hundred_one_after_another, 3000),
    test!(api::starts_like_firecracker, 240),
    test!(api::rejects_invalid_requests, 240),
    test!(api::survives_clients_that_disconnect, 240),
    // Those that take longest come last: a slow machine has no time for all.
    test!(boot::fifty_starts_leave_nothing_behind, 900),
    test!(devices::debians_kernel_uses_them_all, 600),
    test!(compaction::data_stays_intact_through_passes, 600),
    test!(gpu::freed_buffers_leave_whole_blocks, 300),
    test!(gpu::without_patches_memory_is_fragmented, 420),
    test!(gpu_stress::everything_at_once, 900),
    test!(gpu_stress::the_driver_comes_and_goes, 600),
    test!(evacuation::without_our_patches_there_are_no_blocks, 300),
];

fn main() -> ExitCode {
    harness::runner::main(TESTS)
}
