// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs of guest memory in the form that the kernel's vectored calls take, so that data moves
//! between a file and the guest without a copy.

use std::sync::Arc;

use vm_memory::{Address, GuestAddress};

use super::GuestMemoryMmap;
use super::ram_view::RamView;

/// Most vectors that one call takes (`IOV_MAX` of Linux).
const MAX_VECTORS: usize = 1024;

/// Pieces of guest memory by their addresses in this process, and the memory they lie in, which
/// stays mapped for as long as this value lives. They may be taken off the front one by one while
/// others are added, so that buffers that wait need not be looked up for each call.
///
/// The guest may change their contents at any time: they are for system calls only and must never
/// become a Rust slice.
#[derive(Debug, Default)]
pub struct IoVecs {
    vectors: Vec<libc::iovec>,
    /// How many of them are not in use any more.
    first: usize,
    /// Bytes in the others.
    len: usize,
    mem: Option<Arc<GuestMemoryMmap>>,
}

// SAFETY: the pointers are into memory that `mem` keeps mapped, whichever thread has the value, and
// they are only given to system calls.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// Replaces the contents with up to `limit` bytes of `all` from `offset` on, and returns their
    /// number: fewer if `all` ends.
    pub fn gather_from(&mut self, all: &Self, offset: usize, limit: usize) -> usize {
        self.clear();
        self.append_from(all, offset, limit)
    }

    /// As [`gather_from`](Self::gather_from), behind what is here; returns the bytes added, fewer if
    /// `all` ends or is too scattered for one call. All must be of the same memory.
    pub fn append_from(&mut self, all: &Self, offset: usize, limit: usize) -> usize {
        if let Some(mem) = &all.mem {
            self.hold(mem);
        }
        let before = self.len;
        for (at, len) in all.pieces(offset, limit) {
            if self.count() == MAX_VECTORS {
                break;
            }
            self.vectors.push(libc::iovec { iov_base: at.cast(), iov_len: len });
            self.len += len;
        }
        self.len - before
    }

    /// Adds the `len` bytes from `addr` on; false if not all of them are RAM, or there are too many
    /// pieces for one call.
    pub(super) fn push(&mut self, view: &mut RamView, addr: GuestAddress, len: u32) -> bool {
        self.hold(view.mem());
        let (mut next, mut left) = (addr, len as usize);
        while left > 0 {
            let Some((at, part)) = view.locate_part(next, left) else { return false };
            if self.count() == MAX_VECTORS {
                return false;
            }
            self.vectors.push(libc::iovec { iov_base: at.as_ptr().cast(), iov_len: part });
            self.len += part;
            left -= part;
            if left == 0 {
                break;
            }
            match next.checked_add(part as u64) {
                Some(behind) => next = behind,
                None => return false,
            }
        }
        true
    }

    /// Copies bytes from `offset` on into `data`; returns how many there were.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut rest = data;
        let mut filled = 0;
        for (at, len) in self.pieces(offset, rest.len()) {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: `len` bytes that `mem` keeps mapped, to which Rust has no reference.
            unsafe { part.as_mut_ptr().copy_from_nonoverlapping(at, len) };
            rest = behind;
            filled += len;
        }
        filled
    }

    /// Copies `data` to the bytes from `offset` on; returns how many there was room for.
    pub fn write(&self, offset: usize, data: &[u8]) -> usize {
        let mut rest = data;
        for (at, len) in self.pieces(offset, rest.len()) {
            let (part, behind) = rest.split_at(len);
            // SAFETY: as in `read`; all of it is writable.
            unsafe { at.copy_from_nonoverlapping(part.as_ptr(), len) };
            rest = behind;
        }
        data.len() - rest.len()
    }

    /// The runs of memory that make up `limit` bytes from `offset` on.
    fn pieces(&self, offset: usize, limit: usize) -> impl Iterator<Item = (*mut u8, usize)> {
        let (mut skip, mut left) = (offset, limit);
        let pieces = self.as_slice().iter().map_while(move |vector| {
            if left == 0 {
                return None;
            }
            let start = skip.min(vector.iov_len);
            skip -= start;
            let len = left.min(vector.iov_len - start);
            left -= len;
            // SAFETY: `start` is not beyond the vector's end.
            Some((unsafe { vector.iov_base.cast::<u8>().add(start) }, len))
        });
        pieces.filter(|(_, len)| *len > 0)
    }

    /// Makes `mem` the memory of all pieces.
    fn hold(&mut self, mem: &Arc<GuestMemoryMmap>) {
        if !self.mem.as_ref().is_some_and(|held| Arc::ptr_eq(held, mem)) {
            self.clear();
            self.mem = Some(Arc::clone(mem));
        }
    }

    /// Forgets the first `count` vectors.
    pub fn drop_front(&mut self, count: usize) {
        let count = count.min(self.count());
        let gone = &self.as_slice()[..count];
        self.len -= gone.iter().map(|vector| vector.iov_len).sum::<usize>();
        self.first += count;
        // Moved now and then only, so that each vector is moved about once.
        if self.first >= self.count() {
            self.vectors.drain(..self.first);
            self.first = 0;
        }
    }

    /// Forgets all but the first `count` vectors.
    pub fn truncate(&mut self, count: usize) {
        let count = count.min(self.count());
        let gone = &self.as_slice()[count..];
        self.len -= gone.iter().map(|vector| vector.iov_len).sum::<usize>();
        self.vectors.truncate(self.first + count);
    }

    /// Forgets the pieces, but not the room for them.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.first = 0;
        self.len = 0;
    }

    /// The vectors, for a system call.
    pub fn as_slice(&self) -> &[libc::iovec] {
        self.vectors.get(self.first..).unwrap_or_default()
    }

    /// How many vectors there are.
    pub fn count(&self) -> usize {
        self.vectors.len() - self.first
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    proptest! {
        /// The kernel writes to exactly the bytes asked for.
        #[test]
        fn vectors_cover_the_bytes_asked_for(
            parts in prop::collection::vec((0u64..60, 0u32..3000), 0..20),
            offset in 0usize..20_000,
            limit in 0usize..20_000,
        ) {
            // Two regions that touch: a part may cross from one into the other.
            let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x9000)];
            let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let mut view = RamView::new(Arc::clone(&mem));
            let (mut all, mut some) = (IoVecs::default(), IoVecs::default());
            let mut addresses = Vec::new();
            for (page, len) in parts {
                prop_assert!(all.push(&mut view, GuestAddress(page * 1000), len));
                addresses.extend((page * 1000..).take(len as usize));
            }
            let asked: Vec<u64> = addresses.into_iter().skip(offset).take(limit).collect();
            prop_assert_eq!(some.gather_from(&all, offset, limit), asked.len());
            prop_assert_eq!(some.as_slice().iter().map(|vector| vector.iov_len).sum::<usize>(), asked.len());

            let file = tempfile::tempfile().unwrap();
            file.set_len(asked.len() as u64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; asked.len()], 0).unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            let count = i32::try_from(some.as_slice().len()).unwrap();
            // SAFETY: the vectors are of `mem`, which lives.
            let read = unsafe { libc::preadv(fd, some.as_slice().as_ptr(), count, 0) };
            prop_assert_eq!(usize::try_from(read).unwrap(), asked.len());
            let mut bytes = vec![0; 0x11000];
            mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            let mut expected = vec![0; 0x11000];
            asked.iter().for_each(|at| expected[*at as usize] = 1);
            prop_assert!(bytes == expected);
        }
    }

    proptest! {
        /// Taken off the front and added behind, what is left is what a list would hold.
        #[test]
        fn pieces_are_added_behind_and_taken_off_the_front(
            steps in prop::collection::vec((1u32..500, 0usize..4), 1..100),
        ) {
            let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
            let mut view = RamView::new(mem);
            let mut iovecs = IoVecs::default();
            let mut model: Vec<usize> = Vec::new();
            for (len, off) in steps {
                prop_assert!(iovecs.push(&mut view, GuestAddress(0), len));
                model.push(len as usize);
                iovecs.drop_front(off);
                model.drain(..off.min(model.len()));
                let lens: Vec<usize> = iovecs.as_slice().iter().map(|v| v.iov_len).collect();
                prop_assert_eq!(&lens, &model);
                prop_assert_eq!(iovecs.len(), model.iter().sum::<usize>());
            }
            iovecs.truncate(1);
            prop_assert_eq!(iovecs.len(), model.first().copied().unwrap_or(0));
        }
    }

    proptest! {
        /// Bytes are read, written and gathered as if all pieces were one.
        #[test]
        fn pieces_are_accessed_as_one(
            parts in prop::collection::vec((0u64..0x3000, 0u32..300), 0..20),
            offset in 0usize..3000,
            limit in 0usize..3000,
        ) {
            // Two regions that touch: a part may cross from one into the other.
            let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
            let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let bytes: Vec<u8> = (0..0x2000u32).map(|at| (at * 7 / 3) as u8).collect();
            mem.write_slice(&bytes, GuestAddress(0)).unwrap();
            let mut view = RamView::new(Arc::clone(&mem));
            let (mut all, mut model) = (IoVecs::default(), Vec::new());
            for (addr, len) in parts {
                let inside = len == 0 || addr + u64::from(len) <= 0x2000;
                let before = all.count();
                prop_assert_eq!(all.push(&mut view, GuestAddress(addr), len), inside);
                if inside {
                    model.extend(addr as usize..addr as usize + len as usize);
                }
                all.truncate(if inside { all.count() } else { before });
            }
            prop_assert_eq!(all.len(), model.len());
            let expected: Vec<usize> = model.iter().copied().skip(offset).take(limit).collect();
            let mut data = vec![0; limit];
            let got = all.read(offset, &mut data);
            let read: Vec<u8> = expected.iter().map(|at| bytes[*at]).collect();
            prop_assert_eq!(&data[..got], &read);
            let mut some = IoVecs::default();
            prop_assert_eq!(some.gather_from(&all, offset, limit), expected.len());
            let mut same = vec![0; limit];
            prop_assert_eq!(some.read(0, &mut same), got);
            prop_assert_eq!(same, data);
            // All to zero: nothing else changes.
            prop_assert_eq!(some.write(0, &vec![0; limit]), expected.len());
            let mut after = vec![0; 0x2000];
            mem.read_slice(&mut after, GuestAddress(0)).unwrap();
            for (at, byte) in after.iter().enumerate() {
                prop_assert_eq!(*byte, if expected.contains(&at) { 0 } else { bytes[at] });
            }
        }
    }

    #[test]
    fn no_more_vectors_than_one_call_takes() {
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
        let mut view = RamView::new(mem);
        let (mut full, mut other) = (IoVecs::default(), IoVecs::default());
        for _ in 0..MAX_VECTORS {
            assert!(full.push(&mut view, GuestAddress(0), 2));
        }
        assert!(!full.push(&mut view, GuestAddress(0), 2));
        assert!(full.push(&mut view, GuestAddress(0), 0), "nothing needs no vector");
        assert!(other.push(&mut view, GuestAddress(0), 1));
        // One piece that does not fit.
        assert_eq!(other.append_from(&full, 1, 4000), 2 * MAX_VECTORS - 3);
        assert_eq!((other.count(), other.len()), (MAX_VECTORS, 2 * MAX_VECTORS - 2));
        full.drop_front(1);
        assert!(full.push(&mut view, GuestAddress(0), 2), "one was taken off");
    }
}
