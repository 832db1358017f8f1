// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands as values.

use std::io::Read;

use super::command_body::{CommandBody, DecodeError, Entries};
use super::structures::{
    Create2d, CreateBlob, Flush, IdAnd, MapBlob, MigrateEntry, MigratePage, ResourceId, SetScanout,
    SetScanoutBlob, TransferToHost, UpdateCursor,
};
use super::{code, feature};

/// A decoded command.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each variant is the standard's command of that name")]
pub enum Command {
    GetDisplayInfo,
    Create2d(Create2d),
    Unref(ResourceId),
    SetScanout(SetScanout),
    Flush(Flush),
    TransferToHost2d(TransferToHost),
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
    /// Ballast extension, with feature MIGRATE.
    MigrateBacking(ResourceId, Vec<MigrateEntry>),
    /// Ballast extension, with feature MIGRATE_PAGES.
    MigratePages(Vec<MigratePage>),
    UpdateCursor(UpdateCursor),
    MoveCursor(UpdateCursor),
    /// Capability sets: not supported.
    Capset,
    /// Commands on rendering contexts: not supported.
    Context,
    /// Anything else, rendering contexts included.
    Unsupported(u32),
}

impl Command {
    /// Decodes the command after a header of kind `kind`, with at most `max_entries` backing
    /// entries.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when the bytes end too early or name too many entries.
    pub fn decode(
        kind: u32,
        body: &mut CommandBody<impl Read>,
        max_entries: u32,
    ) -> Result<Self, DecodeError> {
        Ok(match kind {
            code::GET_DISPLAY_INFO => Self::GetDisplayInfo,
            code::RESOURCE_CREATE_2D => Self::Create2d(body.take()?),
            code::RESOURCE_UNREF => Self::Unref(body.id()?),
            code::SET_SCANOUT => Self::SetScanout(body.take()?),
            code::RESOURCE_FLUSH => Self::Flush(body.take()?),
            code::TRANSFER_TO_HOST_2D => Self::TransferToHost2d(body.take()?),
            code::RESOURCE_ATTACH_BACKING => Self::attach(body, max_entries)?,
            code::RESOURCE_DETACH_BACKING => Self::DetachBacking(body.id()?),
            code::GET_CAPSET_INFO | code::GET_CAPSET => Self::Capset,
            code::GET_EDID => Self::GetEdid { scanout: body.id()? },
            code::RESOURCE_ASSIGN_UUID => Self::AssignUuid(body.id()?),
            code::RESOURCE_CREATE_BLOB => Self::blob(body, max_entries)?,
            code::SET_SCANOUT_BLOB => Self::SetScanoutBlob(body.take()?),
            code::RESOURCE_MAP_BLOB => Self::MapBlob(body.take()?),
            code::RESOURCE_UNMAP_BLOB => Self::UnmapBlob(body.id()?),
            code::RESOURCE_MIGRATE_BACKING => Self::migrate(body)?,
            code::MIGRATE_PAGES => Self::migrate_pages(body)?,
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

    fn attach(body: &mut CommandBody<impl Read>, max_entries: u32) -> Result<Self, DecodeError> {
        let IdAnd { id, other: count } = body.take()?;
        Ok(Self::AttachBacking(id.get(), body.entries(count.get(), max_entries)?))
    }

    fn blob(body: &mut CommandBody<impl Read>, max_entries: u32) -> Result<Self, DecodeError> {
        let blob: CreateBlob = body.take()?;
        Ok(Self::CreateBlob(blob, body.entries(blob.nr_entries.get(), max_entries)?))
    }

    fn migrate(body: &mut CommandBody<impl Read>) -> Result<Self, DecodeError> {
        let IdAnd { id, other: count } = body.take()?;
        Ok(Self::MigrateBacking(id.get(), body.moves(count.get())?))
    }

    fn migrate_pages(body: &mut CommandBody<impl Read>) -> Result<Self, DecodeError> {
        let IdAnd { id: count, other: _ } = body.take()?;
        Ok(Self::MigratePages(body.moves(count.get())?))
    }

    /// The features without which the command is not supported; none for most.
    pub fn needed_features(&self) -> u64 {
        match self {
            Self::GetEdid { .. } => feature::EDID,
            Self::AssignUuid(_) => feature::RESOURCE_UUID,
            Self::CreateBlob(..)
            | Self::SetScanoutBlob(_)
            | Self::MapBlob(_)
            | Self::UnmapBlob(_) => feature::RESOURCE_BLOB,
            Self::MigrateBacking(..) => feature::MIGRATE,
            Self::MigratePages(..) => feature::MIGRATE | feature::MIGRATE_PAGES,
            _ => 0,
        }
    }
}
