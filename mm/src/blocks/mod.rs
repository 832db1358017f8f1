// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 2 MiB blocks of guest memory: the state of each, and which actions are worth their cost.
//!
//! * [`mask`]: which of a block's pages, one bit each
//! * [`page_set`]: sets of pages kept by block
//! * [`map`]: the state of each block, from one walk of the page table
//! * [`policy`]: goals, limits, costs and patience, as values
//! * [`plan`]: from a map to an ordered list of actions for one stage; pure
//! * [`guest_side`]: what a pass needs of the devices
//! * [`pass`]: runs the stages of a pass
//! * [`stage`]: the stages of a pass, by name
//! * [`stages`]: how each stage carries its plan out
//! * [`loan`]: what the guest has lent for a pass
//! * [`report`]: what a pass did

pub mod guest_side;
pub mod loan;
pub mod map;
pub mod mask;
pub mod page_set;
pub mod pass;
pub mod plan;
pub mod policy;
pub mod report;
pub mod stage;
pub mod stages;
