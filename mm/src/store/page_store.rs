// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The store: keys to pages, each kept the cheapest way.
//!
//! A key's slot has a lock of its own, held while its page is read, so a page is never read half
//! replaced. Compression happens outside it. Lock order: codec worker, slot, then zsmalloc's: a
//! writer that has compressed a page still has its worker when it wants the slot, so a reader
//! takes a worker before it knows whether it needs one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::frames::sync::{SpinGuard, SpinLock};
use crate::frames::{FramePool, PoolError, thread_number};
use crate::units::PAGE_BYTES;
use crate::zsmalloc::{Handle, MAX_SIZE, Mapped, ZsConfig, ZsError, ZsPool};

use super::codec::{Codec, CodecError, Worker};

/// A page's bytes.
pub type Page = [u8; PAGE_BYTES];

/// Names a page in a store: 0 up to the store's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not below the store's capacity.
    #[error("key {key} is out of range: the store has {capacity}")]
    OutOfRange {
        /// The key.
        key: u32,
        /// Keys that there are.
        capacity: u32,
    },
    /// Nothing is stored under the key.
    #[error("nothing is stored under key {0}")]
    Absent(u32),
    /// There is no room for the page.
    #[error(transparent)]
    NoRoom(#[from] ZsError),
    /// The codec failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The frame pool has no place for another owner.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// What a store is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Keys that there are.
    pub capacity: u32,
    /// How pages are kept.
    pub zs: ZsConfig,
}

/// Statistics, in the order of zram's `mm_stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmStat {
    /// Bytes stored, before compression.
    pub orig_data_size: u64,
    /// Bytes after compression; same-filled pages count as none.
    pub compr_data_size: u64,
    /// Bytes of frames in use.
    pub mem_used_total: u64,
    /// Most bytes of frames allowed; 0 for no limit.
    pub mem_limit: u64,
    /// Most bytes of frames at any time.
    pub mem_used_max: u64,
    /// Pages kept as one word.
    pub same_pages: u64,
    /// Frames given back by compaction.
    pub pages_compacted: u64,
    /// Pages kept uncompressed.
    pub huge_pages: u64,
    /// Pages stored uncompressed since the beginning.
    pub huge_pages_since: u64,
}

impl fmt::Display for MmStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            self.orig_data_size,
            self.compr_data_size,
            self.mem_used_total,
            self.mem_limit,
            self.mem_used_max,
            self.same_pages,
            self.pages_compacted,
            self.huge_pages,
            self.huge_pages_since,
        ];
        fields.iter().try_for_each(|field| write!(f, "{field:>12} "))
    }
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Same(u64),
    Raw(Handle),
    Packed(Handle, usize),
}

/// A slot in 12 bytes, so that it takes 16 with its lock.
#[derive(Clone, Copy)]
struct Slot {
    low: u32,
    high: u32,
    /// 0 nothing, 1 to 4095 bytes packed, [`Slot::RAW`] or [`Slot::SAME`].
    form: u16,
}

const _: () = assert!(cfg!(loom) || size_of::<SpinLock<Slot>>() == 16);

impl Slot {
    const RAW: u16 = 4096;
    const SAME: u16 = u16::MAX;
    const EMPTY: Self = Self { low: 0, high: 0, form: 0 };

    // The word is cut in two, and lengths are at most 4096.
    #[allow(clippy::cast_possible_truncation)]
    fn new(kept: Kept) -> Self {
        let (word, form) = match kept {
            Kept::Nothing => (0, 0),
            Kept::Same(word) => (word, Self::SAME),
            Kept::Raw(handle) => (handle.to_bits(), Self::RAW),
            Kept::Packed(handle, len) => (handle.to_bits(), len as u16),
        };
        Self { low: word as u32, high: (word >> 32) as u32, form }
    }

    fn kept(self) -> Kept {
        let word = u64::from(self.high) << 32 | u64::from(self.low);
        match self.form {
            0 => Kept::Nothing,
            Self::SAME => Kept::Same(word),
            Self::RAW => Kept::Raw(Handle::from_bits(word)),
            len => Kept::Packed(Handle::from_bits(word), len.into()),
        }
    }
}

const CHUNK: usize = 4096;

type Chunk = Box<[SpinLock<Slot>]>;

/// Codec state with room to put an object's two pieces together.
struct Bench {
    worker: Box<dyn Worker>,
    spare: Box<Page>,
}

/// A store of compressed pages.
pub struct Store {
    zs: Arc<ZsPool>,
    codec: Box<dyn Codec>,
    config: StoreConfig,
    chunks: Box<[OnceLock<Chunk>]>,
    benches: Box<[Mutex<Option<Bench>>]>,
    pages: AtomicU64,
    packed_bytes: AtomicU64,
    same: AtomicU64,
    raw: AtomicU64,
    raw_since: AtomicU64,
}

impl Store {
    /// A store over frames of `frames`.
    ///
    /// # Errors
    /// [`StoreError::Pool`].
    pub fn new(
        frames: &Arc<FramePool>,
        codec: Box<dyn Codec>,
        config: StoreConfig,
    ) -> Result<Self, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunks = (config.capacity as usize).div_ceil(CHUNK);
        Ok(Self {
            zs: ZsPool::new(frames, config.zs)?,
            codec,
            config,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            benches: (0..threads).map(|_| Mutex::new(None)).collect(),
            pages: AtomicU64::new(0),
            packed_bytes: AtomicU64::new(0),
            same: AtomicU64::new(0),
            raw: AtomicU64::new(0),
            raw_since: AtomicU64::new(0),
        })
    }

    /// Where the objects are kept.
    #[must_use]
    pub fn zs(&self) -> &Arc<ZsPool> {
        &self.zs
    }

    /// Stores a page, in place of what was there.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::NoRoom`] or [`StoreError::Codec`]; what was
    /// there stays.
    pub fn put(&self, key: Key, page: &Page) -> Result<(), StoreError> {
        self.put_batch([(key, page)]).map_err(|(error, _)| error)
    }

    /// Stores pages one after the other, with one look for a codec worker, which is held until the
    /// last: `pages` must not use the store itself. The pages are read where they lie; a caller
    /// that stores guest memory has made them hold still before (write-protected or moved away by
    /// userfaultfd).
    ///
    /// # Errors
    /// As [`put`](Self::put), with the number of pages stored before.
    pub fn put_batch<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key, &'a Page)>,
    ) -> Result<(), (StoreError, usize)> {
        let mut bench = None;
        for (done, (key, page)) in pages.into_iter().enumerate() {
            self.put_one(key, page, &mut bench).map_err(|error| (error, done))?;
        }
        Ok(())
    }

    /// Reads a page into `to`.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::Absent`] or [`StoreError::Codec`].
    pub fn get(&self, key: Key, to: &mut Page) -> Result<(), StoreError> {
        self.read(key, to, &mut None)
    }

    /// Reads pages straight to where they are wanted. As for [`put_batch`](Self::put_batch), `pages`
    /// must not use the store.
    ///
    /// # Errors
    /// As [`get`](Self::get), with the number of pages read before.
    pub fn get_batch<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key, &'a mut Page)>,
    ) -> Result<(), (StoreError, usize)> {
        let mut bench = None;
        for (done, (key, to)) in pages.into_iter().enumerate() {
            self.read(key, to, &mut bench).map_err(|error| (error, done))?;
        }
        Ok(())
    }

    /// Reads a page and removes it: a fault that is served needs no copy any more.
    ///
    /// # Errors
    /// As [`get`](Self::get); the page then stays.
    pub fn take(&self, key: Key, to: &mut Page) -> Result<(), StoreError> {
        let mut cached = None;
        let bench = self.bench(&mut cached)?;
        let mut slot = self.slot(key)?;
        let kept = slot.kept();
        self.restore(key, kept, to, bench)?;
        *slot = Slot::EMPTY;
        drop(slot);
        self.release(kept);
        Ok(())
    }

    /// Removes a page; `false` if there was none.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn remove(&self, key: Key) -> Result<bool, StoreError> {
        let kept = std::mem::replace(&mut *self.slot(key)?, Slot::EMPTY).kept();
        self.release(kept);
        Ok(kept != Kept::Nothing)
    }

    /// Whether a page is stored under `key`.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn contains(&self, key: Key) -> Result<bool, StoreError> {
        Ok(self.slot(key)?.kept() != Kept::Nothing)
    }

    /// Bytes that the page under `key` takes in the store: none for a page of one repeated word, or
    /// if there is none.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`].
    pub fn stored_len(&self, key: Key) -> Result<usize, StoreError> {
        Ok(match self.slot(key)?.kept() {
            Kept::Nothing | Kept::Same(_) => 0,
            Kept::Raw(_) => PAGE_BYTES,
            Kept::Packed(_, len) => len,
        })
    }

    /// Packs what is stored into fewer frames; returns how many were given back.
    pub fn compact(&self) -> u64 {
        self.zs.compact()
    }

    /// Statistics.
    #[must_use]
    pub fn mm_stat(&self) -> MmStat {
        let zs = self.zs.stats();
        let frame = PAGE_BYTES as u64;
        let raw = self.raw.load(Ordering::Relaxed);
        MmStat {
            orig_data_size: self.pages.load(Ordering::Relaxed) * frame,
            compr_data_size: self.packed_bytes.load(Ordering::Relaxed) + raw * frame,
            mem_used_total: zs.frames * frame,
            mem_limit: self.config.zs.limit.map_or(0, |limit| u64::from(limit) * frame),
            mem_used_max: zs.frames_max * frame,
            same_pages: self.same.load(Ordering::Relaxed),
            pages_compacted: zs.frames_compacted,
            huge_pages: raw,
            huge_pages_since: self.raw_since.load(Ordering::Relaxed),
        }
    }

    /// Bytes of the key table and of zsmalloc's tables.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        let chunks = self.chunks.iter().filter(|c| c.get().is_some()).count();
        (chunks * CHUNK * size_of::<SpinLock<Slot>>()) as u64 + self.zs.stats().metadata_bytes
    }

    fn slot(&self, key: Key) -> Result<SpinGuard<'_, Slot>, StoreError> {
        let capacity = self.config.capacity;
        if key.0 >= capacity {
            return Err(StoreError::OutOfRange { key: key.0, capacity });
        }
        let index = key.0 as usize;
        let make = || (0..CHUNK).map(|_| SpinLock::new(Slot::EMPTY)).collect();
        Ok(self.chunks[index / CHUNK].get_or_init(make)[index % CHUNK].lock())
    }

    /// A codec worker: this thread's usual one, or any that is free.
    fn bench<'b, 's: 'b>(
        &'s self,
        cached: &'b mut Option<MutexGuard<'s, Option<Bench>>>,
    ) -> Result<&'b mut Bench, StoreError> {
        let guard = cached.get_or_insert_with(|| {
            let count = self.benches.len();
            let mine = thread_number() % count;
            (0..count)
                .find_map(|i| self.benches[(mine + i) % count].try_lock().ok())
                .unwrap_or_else(|| {
                    self.benches[mine].lock().unwrap_or_else(PoisonError::into_inner)
                })
        });
        if guard.is_none() {
            let worker = self.codec.worker()?;
            **guard = Some(Bench { worker, spare: Box::new([0; PAGE_BYTES]) });
        }
        // Filled just above.
        Ok(guard.as_mut().expect("a worker"))
    }

    fn put_one<'s>(
        &'s self,
        key: Key,
        page: &Page,
        cached: &mut Option<MutexGuard<'s, Option<Bench>>>,
    ) -> Result<(), StoreError> {
        // Before any work for a key that does not exist.
        drop(self.slot(key)?);
        let kept = match same_filled(page) {
            Some(word) => Kept::Same(word),
            None => self.pack(page, cached)?,
        };
        match kept {
            Kept::Nothing => {}
            Kept::Same(_) => add(&self.same, 1),
            Kept::Raw(_) => {
                add(&self.raw, 1);
                add(&self.raw_since, 1);
            }
            Kept::Packed(_, len) => add(&self.packed_bytes, len as u64),
        }
        add(&self.pages, 1);
        let old = std::mem::replace(&mut *self.slot(key)?, Slot::new(kept)).kept();
        self.release(old);
        Ok(())
    }

    fn pack<'s>(
        &'s self,
        page: &Page,
        cached: &mut Option<MutexGuard<'s, Option<Bench>>>,
    ) -> Result<Kept, StoreError> {
        let bench = self.bench(cached)?;
        // What would take a whole frame anyway is kept as it is, and need not be restored.
        let packed = bench.worker.compress(page).filter(|d| !self.zs.takes_a_frame(d.len()));
        match packed {
            Some(data) => {
                let handle = self.zs.alloc(data.len())?;
                self.fill(handle, data)?;
                Ok(Kept::Packed(handle, data.len()))
            }
            None => {
                let handle = self.zs.alloc(MAX_SIZE)?;
                self.fill(handle, page)?;
                Ok(Kept::Raw(handle))
            }
        }
    }

    fn fill(&self, handle: Handle, data: &[u8]) -> Result<(), StoreError> {
        let mut mapped: Mapped<'_> = self.zs.map(handle)?;
        mapped.write(data);
        Ok(())
    }

    fn read<'s>(
        &'s self,
        key: Key,
        to: &mut Page,
        cached: &mut Option<MutexGuard<'s, Option<Bench>>>,
    ) -> Result<(), StoreError> {
        let bench = self.bench(cached)?;
        let slot = self.slot(key)?;
        self.restore(key, slot.kept(), to, bench)
    }

    /// Restores a page; the caller holds its slot.
    fn restore(
        &self,
        key: Key,
        kept: Kept,
        to: &mut Page,
        Bench { worker, spare }: &mut Bench,
    ) -> Result<(), StoreError> {
        match kept {
            Kept::Nothing => return Err(StoreError::Absent(key.0)),
            Kept::Same(word) => to.as_chunks_mut().0.fill(word.to_ne_bytes()),
            Kept::Raw(handle) => self.zs.map(handle)?.read(to),
            Kept::Packed(handle, len) => {
                let mapped = self.zs.map(handle)?;
                worker.decompress(mapped.contiguous(len, spare), to)?;
            }
        }
        Ok(())
    }

    /// Gives back what a slot held.
    fn release(&self, kept: Kept) {
        let handle = match kept {
            Kept::Nothing => return,
            Kept::Same(_) => {
                sub(&self.same, 1);
                None
            }
            Kept::Raw(handle) => {
                sub(&self.raw, 1);
                Some(handle)
            }
            Kept::Packed(handle, len) => {
                sub(&self.packed_bytes, len as u64);
                Some(handle)
            }
        };
        sub(&self.pages, 1);
        if let Some(handle) = handle {
            let freed = self.zs.free(handle);
            debug_assert!(freed.is_ok(), "a handle from a slot of ours: {freed:?}");
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn sub(counter: &AtomicU64, amount: u64) {
    counter.fetch_sub(amount, Ordering::Relaxed);
}

/// The word that a page consists of, if it does.
fn same_filled(page: &Page) -> Option<u64> {
    let words = page.as_chunks::<8>().0;
    let first = words[0];
    // Most pages differ at the end or at once; then there is no need to look further.
    (words[words.len() - 1] == first && words.iter().all(|w| *w == first))
        .then(|| u64::from_ne_bytes(first))
}
