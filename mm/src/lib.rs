// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory: what a guest's RAM is made of on the host, and a pool of movable frames of our own.
//!
//! This crate knows no device, no KVM and no HTTP.
//!
//! * [`units`]: pages, blocks, ranges, amounts, and every conversion between them
//! * [`range_set`]: sets of pages as ranges
//! * [`layout`]: where RAM, the hole and the CMA region lie
//! * [`guest_ram`]: guest RAM, region by region, each with its backing
//! * [`backing`]: what a stretch of RAM is made of on the host, and how to give it back
//! * [`budget`]: limits on what a guest or a client can make the host spend
//! * [`blocks`]: guest memory block by block
//! * [`paging`]: guest memory that is elsewhere, and brought back when it is touched
//! * [`sys`]: the system calls, thinly
//! * [`frames`]: a pool of movable frames, from which contiguous space can always be made
//! * [`zsmalloc`]: small objects packed into movable frames
//! * [`store`]: a store of compressed pages

pub mod backing;
pub mod blocks;
pub mod budget;
pub mod frames;
pub mod guest_ram;
pub mod layout;
pub mod paging;
pub mod range_set;
pub mod store;
pub mod sys;
pub mod units;
pub mod zsmalloc;
