// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wire structures of virtio-gpu (virtio 1.3, 5.7.6) and their decoding; no I/O but the reader's.
//!
//! Guest bytes become a [`Command`] at once; only long lists of entries are read later, a strip at a
//! time ([`Entries`]). An unknown command is a value too: [`Command::Unsupported`].

use std::io::Read;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::display::Rect;

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
    /// RESOURCE_CREATE_BLOB and what goes with it.
    pub const RESOURCE_BLOB: u64 = 1 << 3;
    /// RESOURCE_MIGRATE_BACKING; Ballast's own, see docs/virtio-extensions.md.
    pub const MIGRATE: u64 = 1 << 56;
    /// MIGRATE_PAGES, which names the resource in each entry; Ballast's own, only with MIGRATE.
    pub const MIGRATE_PAGES: u64 = 1 << 57;
}

/// Flags of a header.
pub mod header_flag {
    /// The command is fenced: `fence_id` comes back in the response.
    pub const FENCE: u32 = 1 << 0;
    /// `ring_idx` names the timeline of the fence.
    pub const RING_IDX: u32 = 1 << 1;
}

/// Header of every command and response.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Command or response code.
    pub kind: U32,
    /// [`header_flag`]s.
    pub flags: U32,
    /// Fence, with [`header_flag::FENCE`].
    pub fence_id: U64,
    /// Rendering context.
    pub ctx_id: U32,
    /// Timeline, with [`header_flag::RING_IDX`].
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
pub struct Transfer {
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
struct IdAnd {
    id: U32,
    other: U32,
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

/// A list of [`MemEntry`] that the guest has sent and the device has not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries {
    /// Offset of the first in the readable bytes of the buffer.
    pub at: u64,
    /// How many there are; so many were sent.
    pub count: u32,
}

/// Why bytes are no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The command ends before its structure does, or counts entries that are not there.
    #[error("the command is shorter than it says")]
    Malformed,
    /// More entries than a resource may have.
    #[error("more entries than a resource may have")]
    TooManyEntries,
    /// More pages than one command may move.
    #[error("more pages than one command may move")]
    TooManyMoves,
}

/// A decoded command.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each variant is the standard's command of that name")]
pub enum Command {
    GetDisplayInfo,
    Create2d(Create2d),
    Unref(ResourceId),
    SetScanout(SetScanout),
    Flush(Flush),
    TransferToHost2d(Transfer),
    AttachBacking(ResourceId, Entries),
    DetachBacking(ResourceId),
    GetEdid {
        scanout: u32,
    },
    AssignUuid(ResourceId),
    CreateBlob(CreateBlob, Entries),
    SetScanoutBlob(SetScanoutBlob),
    MapBlob(MapBlob),
    UnmapBlob(ResourceId),
    /// Ballast's own, with feature MIGRATE.
    MigrateBacking(ResourceId, Vec<MigrateEntry>),
    /// Ballast's own, with feature MIGRATE_PAGES.
    MigratePages(Vec<MigratePage>),
    UpdateCursor(UpdateCursor),
    MoveCursor(UpdateCursor),
    /// A capability set: there are none.
    Capset,
    /// A command on a rendering context: there are none.
    Context,
    /// Anything else, rendering contexts included.
    Unsupported(u32),
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
    /// Ballast's own.
    pub const RESOURCE_MIGRATE_BACKING: u32 = 0x01f0;
    /// Ballast's own.
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

impl Command {
    /// Decodes what follows a header of kind `kind`. No more than `max_entries` backing entries
    /// are taken.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when the bytes end too early or name too many entries.
    pub fn decode(
        kind: u32,
        body: &mut Body<impl Read>,
        max_entries: u32,
    ) -> Result<Self, DecodeError> {
        Ok(match kind {
            code::GET_DISPLAY_INFO => Self::GetDisplayInfo,
            code::RESOURCE_CREATE_2D => Self::Create2d(body.take()?),
            code::RESOURCE_UNREF => Self::Unref(body.id()?),
            code::SET_SCANOUT => Self::SetScanout(body.take()?),
            code::RESOURCE_FLUSH => Self::Flush(body.take()?),
            code::TRANSFER_TO_HOST_2D => Self::TransferToHost2d(body.take()?),
            code::RESOURCE_ATTACH_BACKING => body.attach(max_entries)?,
            code::RESOURCE_DETACH_BACKING => Self::DetachBacking(body.id()?),
            code::GET_CAPSET_INFO | code::GET_CAPSET => Self::Capset,
            code::GET_EDID => Self::GetEdid { scanout: body.id()? },
            code::RESOURCE_ASSIGN_UUID => Self::AssignUuid(body.id()?),
            code::RESOURCE_CREATE_BLOB => body.blob(max_entries)?,
            code::SET_SCANOUT_BLOB => Self::SetScanoutBlob(body.take()?),
            code::RESOURCE_MAP_BLOB => Self::MapBlob(body.take()?),
            code::RESOURCE_UNMAP_BLOB => Self::UnmapBlob(body.id()?),
            code::RESOURCE_MIGRATE_BACKING => body.migrate()?,
            code::MIGRATE_PAGES => body.migrate_pages()?,
            code::UPDATE_CURSOR => Self::UpdateCursor(body.take()?),
            code::MOVE_CURSOR => Self::MoveCursor(body.take()?),
            code::CTX_DESTROY
            | code::CTX_ATTACH_RESOURCE
            | code::CTX_DETACH_RESOURCE
            | code::TRANSFER_TO_HOST_3D
            | code::TRANSFER_FROM_HOST_3D
            | code::SUBMIT_3D => Self::Context,
            other => Self::Unsupported(other),
        })
    }
}

/// What of a command's readable bytes is not decoded yet.
pub struct Body<R> {
    reader: R,
    taken: u64,
    left: u64,
}

impl<R: Read> Body<R> {
    /// The `left` bytes that `reader` has.
    pub fn new(reader: R, left: u64) -> Self {
        Self { reader, taken: 0, left }
    }

    /// The next structure.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Malformed`] when the bytes end before it.
    pub fn take<T: FromBytes + FromZeros + IntoBytes>(&mut self) -> Result<T, DecodeError> {
        let mut value = T::new_zeroed();
        self.fill(value.as_mut_bytes())?;
        Ok(value)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DecodeError> {
        let len = bytes.len() as u64;
        self.left = self.left.checked_sub(len).ok_or(DecodeError::Malformed)?;
        self.taken += len;
        self.reader.read_exact(bytes).map_err(|_| DecodeError::Malformed)
    }

    /// A resource or scanout number, and the padding behind it.
    fn id(&mut self) -> Result<u32, DecodeError> {
        self.take::<IdAnd>().map(|pair| pair.id.get())
    }

    fn attach(&mut self, max_entries: u32) -> Result<Command, DecodeError> {
        let IdAnd { id, other: count } = self.take()?;
        Ok(Command::AttachBacking(id.get(), self.entries(count.get(), max_entries)?))
    }

    fn blob(&mut self, max_entries: u32) -> Result<Command, DecodeError> {
        let blob: CreateBlob = self.take()?;
        Ok(Command::CreateBlob(blob, self.entries(blob.nr_entries.get(), max_entries)?))
    }

    fn entries(&self, count: u32, max: u32) -> Result<Entries, DecodeError> {
        self.check_count::<MemEntry>(count)?;
        if count > max {
            return Err(DecodeError::TooManyEntries);
        }
        Ok(Entries { at: self.taken, count })
    }

    fn migrate(&mut self) -> Result<Command, DecodeError> {
        let IdAnd { id, other: count } = self.take()?;
        Ok(Command::MigrateBacking(id.get(), self.moves(count.get())?))
    }

    fn migrate_pages(&mut self) -> Result<Command, DecodeError> {
        let IdAnd { id: count, other: _ } = self.take()?;
        Ok(Command::MigratePages(self.moves(count.get())?))
    }

    fn moves<E: FromBytes + IntoBytes + Clone>(
        &mut self,
        count: u32,
    ) -> Result<Vec<E>, DecodeError> {
        self.check_count::<E>(count)?;
        if count > MAX_MIGRATE_ENTRIES {
            return Err(DecodeError::TooManyMoves);
        }
        let mut moves = vec![E::new_zeroed(); count as usize];
        self.fill(moves.as_mut_slice().as_mut_bytes())?;
        Ok(moves)
    }

    /// The guest has sent `count` entries: only then is memory taken for any.
    fn check_count<E>(&self, count: u32) -> Result<(), DecodeError> {
        let sent = self.left / size_of::<E>() as u64;
        if u64::from(count) > sent { Err(DecodeError::Malformed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the standard's structures, which include the header.
    #[test]
    fn structures_have_the_standard_sizes() {
        const HEADER: usize = 24;
        assert_eq!(size_of::<Header>(), HEADER);
        assert_eq!(HEADER + size_of::<Create2d>(), 40);
        assert_eq!(HEADER + size_of::<SetScanout>(), 48);
        assert_eq!(HEADER + size_of::<Flush>(), 48);
        assert_eq!(HEADER + size_of::<Transfer>(), 56);
        assert_eq!(HEADER + size_of::<CreateBlob>(), 56);
        assert_eq!(HEADER + size_of::<SetScanoutBlob>(), 96);
        assert_eq!(HEADER + size_of::<MapBlob>(), 40);
        assert_eq!(HEADER + size_of::<UpdateCursor>(), 56);
        assert_eq!(size_of::<MemEntry>(), 16);
        assert_eq!(size_of::<MigrateEntry>(), 16);
        assert_eq!(size_of::<MigratePage>(), 24);
    }

    fn decode(kind: u32, bytes: &[u8]) -> Result<Command, DecodeError> {
        Command::decode(kind, &mut Body::new(bytes, bytes.len() as u64), 4)
    }

    #[test]
    fn a_count_beyond_the_bytes_sent_takes_no_memory() {
        for count in [2u32, 3, 1 << 28, u32::MAX] {
            let mut bytes = [0; 8 + 16];
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
            assert_eq!(
                decode(code::RESOURCE_ATTACH_BACKING, &bytes).err(),
                Some(DecodeError::Malformed)
            );
        }
    }

    #[test]
    fn a_count_beyond_the_limit_is_refused() {
        let attach = |count: u8| {
            let mut bytes = vec![0; 8 + usize::from(count) * 16];
            bytes[4] = count;
            decode(code::RESOURCE_ATTACH_BACKING, &bytes).err()
        };
        assert_eq!((attach(4), attach(5)), (None, Some(DecodeError::TooManyEntries)));

        let migrate = |count: u32| {
            let mut bytes = vec![0; 8 + count as usize * 16];
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
            decode(code::RESOURCE_MIGRATE_BACKING, &bytes).err()
        };
        assert_eq!((migrate(512), migrate(513)), (None, Some(DecodeError::TooManyMoves)));
    }

    #[test]
    fn every_command_cut_short_is_malformed() {
        let whole = [0u8; 96];
        for (kind, size) in [
            (code::RESOURCE_CREATE_2D, 16),
            (code::RESOURCE_UNREF, 8),
            (code::SET_SCANOUT, 24),
            (code::RESOURCE_FLUSH, 24),
            (code::TRANSFER_TO_HOST_2D, 32),
            (code::RESOURCE_ATTACH_BACKING, 8),
            (code::RESOURCE_DETACH_BACKING, 8),
            (code::GET_EDID, 8),
            (code::RESOURCE_ASSIGN_UUID, 8),
            (code::RESOURCE_CREATE_BLOB, 32),
            (code::SET_SCANOUT_BLOB, 72),
            (code::RESOURCE_MAP_BLOB, 16),
            (code::RESOURCE_UNMAP_BLOB, 8),
            (code::RESOURCE_MIGRATE_BACKING, 8),
            (code::UPDATE_CURSOR, 32),
            (code::MOVE_CURSOR, 32),
        ] {
            assert!(decode(kind, &whole[..size]).is_ok(), "{kind:#x}");
            assert_eq!(
                decode(kind, &whole[..size - 1]).err(),
                Some(DecodeError::Malformed),
                "{kind:#x}"
            );
        }
    }

    #[test]
    fn what_is_not_offered_is_a_value() {
        for kind in [0, code::CTX_CREATE, code::RESOURCE_CREATE_3D, 0x01ff, u32::MAX] {
            assert!(matches!(decode(kind, &[]), Ok(Command::Unsupported(raw)) if raw == kind));
        }
    }
}
