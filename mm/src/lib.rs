// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory: guest RAM and its backing on the host, and a pool of movable frames for the monitor.
//!
//! This crate knows no device, no KVM and no HTTP. Its two halves, guest memory and the frame pool,
//! do not know each other.
//!
//! ```
//! use mm::backing::BackingKind;
//! use mm::frames::{FramePool, Gfp, Order, PoolConfig, Region};
//! use mm::guest_ram::GuestRam;
//! use mm::layout::MemoryLayout;
//! use mm::units::{Bytes, GuestRange, Pages, Pfn};
//!
//! // Guest memory: one block resident, then given back to the host.
//! let ram = GuestRam::new(MemoryLayout::new(Bytes(16 << 20), Bytes(0))?, BackingKind::Thp)?;
//! let block = GuestRange::new(Pfn(512), Pages(512)).unwrap();
//! ram.populate(block)?;
//! assert_eq!(ram.residency()?.resident, Bytes(2 << 20));
//! assert_eq!(ram.discard(&[block])?.freed, Bytes(2 << 20));
//!
//! // A pool of frames: a contiguous run, even among movable frames.
//! let pool = FramePool::new(Region::anonymous(16 << 20)?, PoolConfig::default())?;
//! let run = pool.alloc_contig(1000, 1)?;
//! assert_eq!(run.bytes(), 1000 * 4096);
//! pool.free_contig(run).map_err(|(error, _)| error)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//!
//! * [`units`]: pages, blocks, ranges, amounts, and every conversion between them
//! * [`range_set`]: sets of pages as ranges
//! * [`layout`]: where RAM, the hole and the CMA region lie
//! * [`guest_ram`]: guest RAM, region by region, each with its backing
//! * [`backing`]: how a region of RAM is backed on the host, and how to return its pages
//! * [`budget`]: limits on what a guest or a client can make the host spend
//! * [`blocks`]: guest memory block by block
//! * [`paging`]: guest memory that is absent, and brought back on access
//! * [`sys`]: thin wrappers around system calls
//! * [`frames`]: a pool of movable frames, in which contiguous space can always be made
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
