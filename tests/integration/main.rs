// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests with real guests, in one program that `cargo xtask test` runs where KVM works. No test
//! asserts a time: machines differ. Time limits only end what hangs.
//!
//! - `boot.rs`         kernels, sizes, ways to end, nothing left behind
//! - `balloon.rs`      memory given back and taken again, statistics, out of memory
//! - `evacuation.rs`   whole blocks from a fragmented guest, and vacated on request
//! - `free_pages.rs`   memory that goes back without a balloon: reporting, hinting
//! - `compaction.rs` the host's side put in order, under guests that go on; hosts that lack something
//! - `contiguous.rs`  contiguous memory for the guest's devices: what it is made of, who uses it
//! - `framework.rs`    Linux's movable pages at work in our guest: balloon, zram, CMA
//! - `gpu.rs`          GPU buffers that move: their bytes, fragmentation, CMA
//! - `gpu_stress.rs`   the same with everything at once
//! - `display.rs`      Debian's console and a client of its own on a scanout
//! - `pause.rs`        pause and resume under load
//! - `api.rs`          the HTTP API: Firecracker's way to start, and clients that misbehave
//! - `command_line.rs` flags and files that are not what they should be

mod api;
mod balloon;
mod boot;
mod command_line;
mod compaction;
mod contiguous;
mod display;
mod evacuation;
mod framework;
mod free_pages;
mod gpu;
mod gpu_stress;
mod pause;

use std::process::ExitCode;

use harness::runner::Test;
use harness::test;

const TESTS: &[Test] = &[
    test!(command_line::flags_that_make_no_sense, 60),
    test!(command_line::memory_that_the_host_does_not_have, 60),
    test!(command_line::kernel_that_is_none, 60),
    test!(command_line::initrd_that_cannot_be_read, 60),
    test!(command_line::no_permission_for_kvm, 60),
    test!(command_line::socket_of_a_live_and_of_a_dead_instance, 180),
    test!(boot::elf_kernel, 180),
    test!(boot::bz_image_with_two_cpus, 180),
    test!(boot::debian_kernel, 300),
    test!(boot::memory_of_128_mib, 180),
    test!(boot::memory_of_5_gib, 240),
    test!(boot::reboot_ends_the_monitor, 180),
    test!(boot::triple_fault_ends_the_monitor, 180),
    test!(boot::guest_panic_ends_the_monitor, 180),
    test!(boot::fifty_starts_leave_nothing_behind, 900),
    test!(balloon::half_of_memory_and_back, 300),
    test!(balloon::statistics_agree_with_the_guest, 240),
    test!(balloon::deflates_rather_than_running_out_of_memory, 300),
    test!(balloon::memory_in_use_is_left_alone, 300),
    test!(balloon::targets_that_make_no_sense, 180),
    test!(balloon::targets_that_change_under_way, 300),
    test!(balloon::a_driver_that_leaves_and_comes_again, 400),
    test!(free_pages::freed_memory_is_reported, 240),
    test!(free_pages::free_memory_is_hinted_on_request, 300),
    test!(free_pages::poisoned_pages_are_left_alone, 240),
    test!(framework::balloon_pages_migrate, 240),
    test!(framework::zram_pages_migrate, 240),
    test!(framework::contiguous_memory_over_zram_and_balloon_pages, 240),
    test!(evacuation::blocks_from_a_fragmented_guest, 300),
    test!(evacuation::blocks_in_use_are_vacated, 300),
    test!(evacuation::a_block_with_a_pinned_page_is_busy, 240),
    test!(evacuation::without_our_patches_there_are_no_blocks, 300),
    test!(evacuation::ranges_that_make_no_sense, 180),
    test!(compaction::blocks_replace_single_pages, 300),
    test!(compaction::a_stock_guest_is_made_huge_again, 300),
    test!(compaction::unasked, 240),
    test!(compaction::data_stays_intact_through_passes, 420),
    test!(compaction::guests_that_reset_or_stand_still, 240),
    test!(compaction::passes_that_make_no_sense, 240),
    test!(compaction::hosts_without_huge_pages, 300),
    test!(compaction::kernels_that_know_less, 240),
    test!(compaction::every_kind_of_memory, 300),
    test!(compaction::a_gigantic_page, 240),
    test!(contiguous::region_is_backed_when_asked_for, 240),
    test!(contiguous::use_of_the_region_is_told, 240),
    test!(contiguous::pictures_are_made_huge_at_once, 300),
    test!(compaction::a_limit_on_memory, 240),
    test!(gpu::buffers_move_while_in_use, 420),
    test!(gpu::exported_buffers_stay, 240),
    test!(gpu::freed_buffers_leave_whole_blocks, 300),
    test!(gpu::without_patches_memory_is_fragmented, 420),
    test!(gpu::cma_is_filled_before_memory_runs_out, 300),
    test!(gpu::contiguous_memory_over_gpu_pages, 300),
    test!(gpu_stress::everything_at_once, 600),
    test!(display::console_and_client_of_debian, 420),
    test!(pause::under_load, 240),
    test!(api::started_as_firecracker_is, 240),
    test!(api::requests_that_make_no_sense, 240),
    test!(api::clients_that_vanish, 240),
];

fn main() -> ExitCode {
    harness::runner::main(TESTS)
}
