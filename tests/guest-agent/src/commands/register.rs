// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of a device, past its driver, which is unbound meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::reason;
use crate::console::Answer;
use crate::region::PAGE;

/// `register-read ADDRESS`: the `value=` of the 32-bit register at a guest-physical address.
pub(crate) fn read(address: usize) -> Answer {
    let value = with_register(address, |register| {
        // SAFETY: a mapped register, aligned; no reference to it exists.
        unsafe { register.read_volatile() }
    })?;
    Ok(vec![format!("value={value}")])
}

/// `register-write ADDRESS VALUE`.
pub(crate) fn write(address: usize, value: usize) -> Answer {
    let value = u32::try_from(value).map_err(|e| reason("value")(&e))?;
    with_register(address, |register| {
        // SAFETY: as in `read`.
        unsafe { register.write_volatile(value) }
    })?;
    Ok(vec![])
}

/// Calls `act` with the register at `address` while it is mapped.
fn with_register<T>(address: usize, act: impl FnOnce(NonNull<u32>) -> T) -> Result<T, String> {
    if !address.is_multiple_of(size_of::<u32>()) {
        return Err(format!("not aligned: {address:#x}"));
    }
    let (page, offset) = (address - address % PAGE, address % PAGE);
    let mapped = || -> io::Result<_> {
        let memory =
            File::options().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping of its own, at an address that the kernel chooses.
        let at = unsafe { mmap(null_mut(), PAGE, access, MapFlags::SHARED, &memory, page as u64)? };
        NonNull::new(at).ok_or_else(|| io::Error::other("mapped at 0"))
    };
    let mapping = mapped().map_err(|e| reason("/dev/mem")(&e))?;
    // SAFETY: the offset is within the page.
    let result = act(unsafe { mapping.byte_add(offset) }.cast());
    // SAFETY: the whole mapping, which is not used any more.
    unsafe { munmap(mapping.as_ptr(), PAGE) }.map_err(|e| reason("unmapping")(&e))?;
    Ok(result)
}
