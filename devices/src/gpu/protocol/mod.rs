// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wire structures of virtio-gpu (virtio 1.3, 5.7.6) and their decoding; no I/O but the reader's.
//!
//! Guest bytes become a [`Command`] at once; only long lists of entries are read later, a strip at a
//! time ([`Entries`]). An unknown command is a value too: [`Command::Unsupported`].
//!
//! - `structures.rs`: the structures
//! - `command.rs`: [`Command`], and the one table from codes to commands
//! - `command_body.rs`: [`CommandBody`], which takes structures and lists out of bytes

mod command;
mod command_body;
mod structures;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use command_body::{CommandBody, DecodeError, Entries};
pub use structures::*;

/// Most scanouts that a device can have.
pub const MAX_SCANOUTS: usize = 16;

/// The shared-memory region that host blobs are mapped into.
pub const SHM_ID_HOST_VISIBLE: u8 = 1;

/// Most entries of one RESOURCE_MIGRATE_BACKING or MIGRATE_PAGES (`VIRTIO_GPU_MIGRATE_MAX_ENTRIES` of
/// guest-kernel/uapi/ballast_gpu.h).
pub const MAX_MIGRATE_ENTRIES: u32 = 512;

/// `events_read` bit: display information changed.
pub const EVENT_DISPLAY: u32 = 1 << 0;

/// Feature bits.
pub mod feature {
    /// GET_EDID.
    pub const EDID: u64 = 1 << 1;
    /// RESOURCE_ASSIGN_UUID.
    pub const RESOURCE_UUID: u64 = 1 << 2;
    /// RESOURCE_CREATE_BLOB and related features.
    pub const RESOURCE_BLOB: u64 = 1 << 3;
    /// RESOURCE_MIGRATE_BACKING; Ballast extension, see docs/virtio-extensions.md.
    pub const MIGRATE: u64 = 1 << 56;
    /// MIGRATE_PAGES, which names the resource in each entry; Ballast extension, only with MIGRATE.
    pub const MIGRATE_PAGES: u64 = 1 << 57;
}

/// Flags of a header.
pub mod header_flag {
    /// The command is fenced: the response carries its `fence_id`.
    pub const FENCE: u32 = 1 << 0;
    /// `ring_idx` names the timeline of the fence.
    pub const RING_IDX: u32 = 1 << 1;
}

/// Codes of the commands.
pub mod code {
    #![allow(missing_docs, reason = "the standard's names")]
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    pub const RESOURCE_CREATE_2D: u32 = 0x0101;
    pub const RESOURCE_UNREF: u32 = 0x0102;
    pub const SET_SCANOUT: u32 = 0x0103;
    pub const RESOURCE_FLUSH: u32 = 0x0104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    pub const RESOURCE_DETACH_BACKING: u32 = 0x0107;
    pub const GET_CAPSET_INFO: u32 = 0x0108;
    pub const GET_CAPSET: u32 = 0x0109;
    pub const GET_EDID: u32 = 0x010a;
    pub const RESOURCE_ASSIGN_UUID: u32 = 0x010b;
    pub const RESOURCE_CREATE_BLOB: u32 = 0x010c;
    pub const SET_SCANOUT_BLOB: u32 = 0x010d;
    /// Ballast extension.
    pub const RESOURCE_MIGRATE_BACKING: u32 = 0x01f0;
    /// Ballast extension.
    pub const MIGRATE_PAGES: u32 = 0x01f1;
    pub const CTX_CREATE: u32 = 0x0200;
    pub const CTX_DESTROY: u32 = 0x0201;
    pub const CTX_ATTACH_RESOURCE: u32 = 0x0202;
    pub const CTX_DETACH_RESOURCE: u32 = 0x0203;
    pub const RESOURCE_CREATE_3D: u32 = 0x0204;
    pub const TRANSFER_TO_HOST_3D: u32 = 0x0205;
    pub const TRANSFER_FROM_HOST_3D: u32 = 0x0206;
    pub const SUBMIT_3D: u32 = 0x0207;
    pub const RESOURCE_MAP_BLOB: u32 = 0x0208;
    pub const RESOURCE_UNMAP_BLOB: u32 = 0x0209;
    pub const UPDATE_CURSOR: u32 = 0x0300;
    pub const MOVE_CURSOR: u32 = 0x0301;
}
