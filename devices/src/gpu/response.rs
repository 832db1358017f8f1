// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Responses of the device: the standard's responses, and its errors by cause (virtio 1.3, 5.7.6).

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::edid;
use super::host_memory::{OutOfHostMemory, WindowError};
use super::protocol::{CommandHeader, DecodeError, MAX_SCANOUTS, WireRect};
use super::resource_backing::ResourceBackingError;
use crate::display::Rect;

/// Why a command failed. The guest sees only the standard's code; the log and tests see this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The bytes are no command.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// There is too little room for the answer.
    #[error("the response buffer is too small")]
    NoRoom,
    /// Not offered, or its feature was not negotiated.
    #[error("the command is not supported")]
    NotOffered,
    /// The device has as many resources as it may have.
    #[error("the limit on resources is reached")]
    Limit,
    /// No more host memory for this device.
    #[error(transparent)]
    HostMemory(#[from] OutOfHostMemory),
    /// No such scanout.
    #[error("no such scanout")]
    NoScanout,
    /// No such resource, or one that exists already where a new one is asked for.
    #[error("the resource ID is 0, unknown, or in use")]
    ResourceId,
    /// There are no rendering contexts.
    #[error("no such context")]
    NoContext,
    /// The resource is of a kind that the command does not go with.
    #[error("the command does not apply to this kind of resource")]
    WrongKind,
    /// Already attached or mapped, or not attached or mapped.
    #[error("the resource is in the wrong state for the command")]
    WrongState,
    /// A rectangle, size, format, stride, offset or flag that is out of range.
    #[error("a parameter is out of range")]
    Parameter,
    /// The entries do not describe guest RAM.
    #[error(transparent)]
    Backing(#[from] ResourceBackingError),
    /// Memory cannot be mapped at that place in the window.
    #[error(transparent)]
    Window(#[from] WindowError),
}

impl Fault {
    /// The standard's code for it.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Decode(DecodeError::TooManyEntries) | Self::Limit | Self::HostMemory(_) => {
                error::OUT_OF_MEMORY
            }
            Self::Decode(_)
            | Self::NoRoom
            | Self::Parameter
            | Self::WrongKind
            | Self::Backing(_) => error::PARAMETER,
            Self::NotOffered | Self::WrongState => error::UNSPEC,
            Self::NoScanout => error::SCANOUT_ID,
            Self::ResourceId => error::RESOURCE_ID,
            Self::NoContext => error::CONTEXT_ID,
            Self::Window(WindowError::Host | WindowError::Budget(_)) => error::OUT_OF_MEMORY,
            Self::Window(_) => error::PARAMETER,
        }
    }
}

/// Error codes of the standard.
pub mod error {
    #![allow(missing_docs, reason = "the standard's names, without their common prefix")]
    pub const UNSPEC: u32 = 0x1200;
    pub const OUT_OF_MEMORY: u32 = 0x1201;
    pub const SCANOUT_ID: u32 = 0x1202;
    pub const RESOURCE_ID: u32 = 0x1203;
    pub const CONTEXT_ID: u32 = 0x1204;
    pub const PARAMETER: u32 = 0x1205;
}

/// Success codes of the standard.
pub mod ok {
    #![allow(missing_docs, reason = "the standard's names, without their common prefix")]
    pub const NODATA: u32 = 0x1100;
    pub const DISPLAY_INFO: u32 = 0x1101;
    pub const EDID: u32 = 0x1104;
    pub const RESOURCE_UUID: u32 = 0x1105;
    pub const MAP_INFO: u32 = 0x1106;
    /// Ballast extension.
    pub const MIGRATE_PAGES: u32 = 0x11f1;
}

/// `map_info`: the guest may map it cached.
const MAP_CACHE_CACHED: u32 = 1;

/// Bytes that an EDID answer has room for.
const EDID_ROOM: usize = 1024;

/// What a scanout is, for GET_DISPLAY_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DisplayOne {
    /// Where on the desktop, and how large.
    pub rect: Rect,
    /// Plugged in.
    pub enabled: bool,
}

/// Result for one entry of MIGRATE_PAGES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PageMove {
    /// The page is at its new place.
    Moved = 0,
    /// Nothing has changed.
    Refused = 1,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the standard's response of that name")]
pub(super) enum Response {
    NoData,
    DisplayInfo(Box<[DisplayOne; MAX_SCANOUTS]>),
    /// Of an unplugged scanout: none.
    Edid(Option<Box<[u8; edid::BLOCK_SIZE]>>),
    ResourceUuid([u8; 16]),
    MapInfo,
    /// Ballast extension: the result for each entry.
    MigratePages(Vec<PageMove>),
}

impl Response {
    fn code(&self) -> u32 {
        match self {
            Self::NoData => ok::NODATA,
            Self::DisplayInfo(_) => ok::DISPLAY_INFO,
            Self::Edid(_) => ok::EDID,
            Self::ResourceUuid(_) => ok::RESOURCE_UUID,
            Self::MapInfo => ok::MAP_INFO,
            Self::MigratePages(_) => ok::MIGRATE_PAGES,
        }
    }

    /// Adds what follows the header.
    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::NoData => {}
            Self::DisplayInfo(scanouts) => {
                for one in scanouts.iter() {
                    out.extend_from_slice(WireRect::from(one.rect).as_bytes());
                    out.extend_from_slice(&u32::from(one.enabled).to_le_bytes());
                    out.extend_from_slice(&[0; 4]);
                }
            }
            Self::Edid(block) => {
                let len = out.len();
                let block = block.as_ref().map_or(&[][..], |block| &block[..]);
                out.extend_from_slice(U32::from(block.len() as u32).as_bytes());
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(block);
                out.resize(len + 8 + EDID_ROOM, 0);
            }
            Self::ResourceUuid(uuid) => out.extend_from_slice(uuid),
            Self::MigratePages(moves) => out.extend(moves.iter().map(|page| *page as u8)),
            Self::MapInfo => {
                out.extend_from_slice(&MAP_CACHE_CACHED.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
            }
        }
    }
}

/// Encodes a response with `header`, whose `kind` becomes the response code.
pub(super) fn encode(mut header: CommandHeader, answer: &Result<Response, Fault>) -> Vec<u8> {
    header.kind = match answer {
        Ok(response) => response.code(),
        Err(fault) => fault.code(),
    }
    .into();
    let mut out = header.as_bytes().to_vec();
    if let Ok(response) = answer {
        response.encode_body(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_standard_sizes() {
        let size = |response| encode(CommandHeader::default(), &Ok(response)).len();
        assert_eq!(size(Response::NoData), 24);
        assert_eq!(size(Response::DisplayInfo(Box::default())), 24 + 16 * 24);
        assert_eq!(size(Response::Edid(Some(Box::new([0; 128])))), 24 + 8 + 1024);
        assert_eq!(size(Response::Edid(None)), 24 + 8 + 1024);
        assert_eq!(size(Response::ResourceUuid([0; 16])), 40);
        assert_eq!(size(Response::MapInfo), 32);
        assert_eq!(size(Response::MigratePages(vec![PageMove::Refused; 3])), 27);
    }
}
