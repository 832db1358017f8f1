// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads an initrd into guest memory.

use std::io;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::error::KernelError;
use super::loaded::{KernelEntry, LoadedInitrd, LoadedKernel, low_ram_end};
use crate::arch::memory_map::MapEntry;
use crate::host::files::open_regular;

const PAGE: u64 = 4096;

/// Loads the initrd at `path` as high in low RAM as `kernel` allows, but below `ceiling`: the
/// kernel reserves its CMA region only at the given address, and fails if that is occupied.
///
/// # Errors
///
/// Where the file is empty, cannot be read, or does not fit.
pub fn load_initrd<M: GuestMemoryBackend>(
    mem: &M,
    map: &[MapEntry],
    kernel: &LoadedKernel,
    path: &Path,
    ceiling: GuestAddress,
) -> Result<LoadedInitrd, KernelError> {
    let read_error = |source| KernelError::Read { what: "initrd", path: path.to_owned(), source };
    let mut file = open_regular(path).map_err(read_error)?;
    let len = file.metadata().map_err(read_error)?.len();
    if len == 0 {
        return Err(KernelError::EmptyInitrd(path.to_owned()));
    }
    let mut limit = low_ram_end(map).min(ceiling.0);
    if let KernelEntry::Linux64 { header: Some(header), .. } = kernel.entry {
        limit = limit.min(u64::from(header.initrd_addr_max).saturating_add(1));
    }
    let floor = kernel.end.next_multiple_of(PAGE);
    let too_large = || KernelError::InitrdTooLarge {
        path: path.to_owned(),
        len,
        room: limit.saturating_sub(floor),
    };
    let start = limit.checked_sub(len).map(|s| s - s % PAGE).filter(|s| *s >= floor);
    let start = GuestAddress(start.ok_or_else(too_large)?);
    let len = u32::try_from(len).map_err(|_| too_large())?;
    mem.read_exact_volatile_from(start, &mut file, len as usize)
        .map_err(|error| read_error(io::Error::other(error)))?;
    Ok(LoadedInitrd { start, len })
}
