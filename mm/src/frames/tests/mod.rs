// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the pool, by subject.
//!
//! - `driver.rs` an owner of movable frames, which the others share
//! - `basics.rs` allocation, migrate types, watermarks, caches, compaction
//! - `contig.rs` contiguous runs and CMA areas · `shrink.rs` shrinkers
//! - `contract.rs` owners that refuse, fail, free, panic or report false results · `bad_input.rs`
//!   invalid requests
//! - `model.rs` random histories against a model · `stress.rs` threads

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod basics;
mod contig;
mod contract;
mod driver;
mod model;
mod shrink;
mod stress;
