// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands, by what they are about. Each is a method of
//! [`Engine`](super::engine::Engine) that checks everything before it changes anything.
//!
//! - `image.rs`: 2D resources and transfers to them
//! - `backing.rs`: guest memory of resources: attach, detach, migrate
//! - `blob.rs`: blobs, in guest and in host memory, and the window
//! - `scanout.rs`: display information, what scanouts show, flushes
//! - `cursor.rs`: the mouse pointer

mod backing;
mod blob;
mod cursor;
mod image;
mod scanout;
