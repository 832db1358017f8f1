// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Codec workers: one more than CPUs, each used by one thread at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::codec::{Codec, CodecError, CodecWorker};
use crate::frames::thread_number;

/// A codec worker with room to put an object's pieces together.
pub(super) struct Bench {
    pub(super) worker: Box<dyn CodecWorker>,
    pub(super) spare: Box<[u8]>,
    /// The pages of a bundle, and which.
    pub(super) unpacked: Vec<u8>,
    pub(super) restored: Option<u64>,
}

/// A worker locked by a thread; empty before its first use.
pub(super) type Lent<'a> = MutexGuard<'a, Option<Bench>>;

/// All workers of a store.
pub(super) struct Workers {
    codec: Box<dyn Codec>,
    /// Most bytes that are compressed at once.
    most: usize,
    benches: Box<[Mutex<Option<Bench>>]>,
}

impl Workers {
    /// One more than processors, each made when first used, for at most `most` bytes: a thread with a
    /// low priority may hold one while it waits for a CPU, and others must not wait for that thread.
    pub(super) fn new(codec: Box<dyn Codec>, most: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { codec, most, benches: (0..=threads).map(|_| Mutex::new(None)).collect() }
    }

    /// The worker in `cached`, else this thread's usual one, else any that is free. It is lent
    /// until `cached` is dropped.
    pub(super) fn bench<'b, 's: 'b>(
        &'s self,
        cached: &'b mut Option<Lent<'s>>,
    ) -> Result<&'b mut Bench, CodecError> {
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
            let worker = self.codec.worker(self.most)?;
            let spare = vec![0; self.most].into();
            **guard = Some(Bench { worker, spare, unpacked: Vec::new(), restored: None });
        }
        // Filled just above.
        Ok(guard.as_mut().expect("a worker"))
    }
}
