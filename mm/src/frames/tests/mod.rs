// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the pool, by subject. `driver` is the owner of movable frames that they share.

// Numbers here are small, and a test is free to panic.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod bad_input;
mod basics;
mod contig;
mod contract;
mod driver;
mod model;
mod shrink;
mod stress;
