// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures as they lie in guest memory, all little-endian.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::display::Rect;

/// Header of every command and response.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandHeader {
    /// Command or response code.
    pub kind: U32,
    /// [`header_flag`](super::header_flag)s.
    pub flags: U32,
    /// Fence, with [`FENCE`](super::header_flag::FENCE).
    pub fence_id: U64,
    /// Rendering context.
    pub ctx_id: U32,
    /// Timeline, with [`RING_IDX`](super::header_flag::RING_IDX).
    pub ring_idx: u8,
    /// Zero.
    pub padding: [u8; 3],
}

/// A rectangle on the wire.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireRect {
    /// Left edge.
    pub x: U32,
    /// Top edge.
    pub y: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
}

impl From<WireRect> for Rect {
    fn from(r: WireRect) -> Self {
        Rect::new(r.x.get(), r.y.get(), r.width.get(), r.height.get())
    }
}

impl From<Rect> for WireRect {
    fn from(r: Rect) -> Self {
        Self { x: r.x.into(), y: r.y.into(), width: r.width.into(), height: r.height.into() }
    }
}

/// Some guest memory of a resource.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemEntry {
    /// Guest-physical address.
    pub addr: U64,
    /// Bytes.
    pub length: U32,
    /// Zero.
    pub padding: U32,
}

/// One page that moves.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MigrateEntry {
    /// Byte offset in the backing, a multiple of the page size.
    pub offset: U64,
    /// Guest-physical address of the page's new place.
    pub addr: U64,
}

/// Page of a resource's backing, and its new place.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MigratePage {
    /// Resource that the page belongs to.
    pub resource: U32,
    /// Unused.
    pub padding: U32,
    /// Where in its backing, and the new address.
    pub entry: MigrateEntry,
}

/// Resource number; never 0 for one that exists.
pub type ResourceId = u32;

/// RESOURCE_CREATE_2D.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Create2d {
    /// Number of the new resource.
    pub resource_id: U32,
    /// A pixel format.
    pub format: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
}

/// SET_SCANOUT.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetScanout {
    /// The part of the resource to show.
    pub rect: WireRect,
    /// Which scanout.
    pub scanout_id: U32,
    /// 0 for none.
    pub resource_id: U32,
}

/// RESOURCE_FLUSH.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flush {
    /// What changed.
    pub rect: WireRect,
    /// Of which resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// TRANSFER_TO_HOST_2D.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TransferToHost {
    /// Where in the image.
    pub rect: WireRect,
    /// Where in the backing the first of its bytes is.
    pub offset: U64,
    /// Which resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// A resource number and one more: padding, or the number of entries that follow.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IdAnd {
    /// The number.
    pub id: U32,
    /// What follows it.
    pub other: U32,
}

/// RESOURCE_CREATE_BLOB, without its entries.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CreateBlob {
    /// Number of the new resource.
    pub resource_id: U32,
    /// One of [`blob_mem`].
    pub blob_mem: U32,
    /// [`blob_flag`]s.
    pub blob_flags: U32,
    /// Entries that follow.
    pub nr_entries: U32,
    /// An object of a rendering context.
    pub blob_id: U64,
    /// Bytes.
    pub size: U64,
}

/// Where a blob's memory is.
pub mod blob_mem {
    /// Guest RAM.
    pub const GUEST: u32 = 1;
    /// The host's memory.
    pub const HOST3D: u32 = 2;
    /// Both, kept alike by transfers.
    pub const HOST3D_GUEST: u32 = 3;
}

/// What a blob may be used for.
pub mod blob_flag {
    /// It can be mapped into the host-visible window.
    pub const MAPPABLE: u32 = 1 << 0;
    /// All flags of the standard.
    pub const ALL: u32 = 0b111;
}

/// SET_SCANOUT_BLOB.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetScanoutBlob {
    /// The part of the framebuffer to show.
    pub rect: WireRect,
    /// Which scanout.
    pub scanout_id: U32,
    /// 0 for none.
    pub resource_id: U32,
    /// Pixels in a row of the framebuffer.
    pub width: U32,
    /// Rows of the framebuffer.
    pub height: U32,
    /// A pixel format.
    pub format: U32,
    /// Zero.
    pub padding: U32,
    /// Bytes from row to row, for each plane.
    pub strides: [U32; 4],
    /// Where each plane begins.
    pub offsets: [U32; 4],
}

/// RESOURCE_MAP_BLOB.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapBlob {
    /// Which blob.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
    /// Byte offset in the host-visible window.
    pub offset: U64,
}

/// UPDATE_CURSOR and MOVE_CURSOR.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UpdateCursor {
    /// On which scanout.
    pub scanout_id: U32,
    /// Column, as a signed number.
    pub x: U32,
    /// Row, as a signed number.
    pub y: U32,
    /// Zero.
    pub pos_padding: U32,
    /// The image; 0 hides the cursor. Update only.
    pub resource_id: U32,
    /// Column of the image that points. Update only.
    pub hot_x: U32,
    /// Row of the image that points. Update only.
    pub hot_y: U32,
    /// Zero.
    pub padding: U32,
}
