// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Meaning of the kernel's error numbers for memory allocation.

use std::io;

use rustix::io::Errno;

/// Why the kernel did not allocate memory or make it huge, if that is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRefusal {
    /// It has no free memory of that kind, or the control group's limit is reached.
    OutOfMemory,
    /// A temporary obstacle: try again later.
    Busy,
    /// Not supported for this memory or by this kernel.
    Unsupported,
}

impl MemoryRefusal {
    /// The meaning of an error of madvise(2) with MADV_COLLAPSE or MADV_POPULATE_WRITE, or of
    /// fallocate(2) on a file of huge pages; `None` if it is a fault.
    pub fn of(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            // EBUSY and ENOSYS: kernels that cannot allocate or charge a huge page now.
            Errno::NOMEM | Errno::BUSY | Errno::NOSYS | Errno::NOSPC => Some(Self::OutOfMemory),
            Errno::AGAIN => Some(Self::Busy),
            Errno::INVAL => Some(Self::Unsupported),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_no_refusals() {
        let of = |errno: Errno| MemoryRefusal::of(&errno.into());
        assert_eq!(of(Errno::NOMEM), Some(MemoryRefusal::OutOfMemory));
        assert_eq!(of(Errno::AGAIN), Some(MemoryRefusal::Busy));
        assert_eq!(of(Errno::INVAL), Some(MemoryRefusal::Unsupported));
        assert_eq!(of(Errno::BADF), None);
        assert_eq!(MemoryRefusal::of(&io::ErrorKind::Other.into()), None);
    }
}
