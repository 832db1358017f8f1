// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disposal of dropped resources. Freeing hundreds of megabytes, or hundreds of thousands of runs,
//! takes milliseconds, so it is done in steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use mm::budget::Charge;
use mm::units::usize_from;

use crate::gpu::host_memory::{Held, HostRegion};
use crate::gpu::protocol::ResourceId;
use crate::gpu::resource::{Backed, Resource, ResourceKind};
use crate::gpu::resource_backing::Remains;
use crate::gpu::window::Window;
use crate::virtio::{Deadline, Progress};

/// Bytes of host memory that are freed between two looks at the deadline.
const STEP: u64 = 2 << 20;
/// Cost of freeing a byte, as a divisor: a page takes about as long as copying a quarter of it.
const FREE_BYTE: u64 = 4;
/// Cost of freeing a run of a backing.
const FREE_RUN: u64 = 64;
/// Runs that are freed between two looks at the deadline.
const RUNS: usize = 512;

/// Resources to be freed.
#[derive(Default)]
pub(in crate::gpu) struct Disposal {
    resources: BTreeMap<ResourceId, Resource>,
    /// Memory of a dropped resource, and how much of it is freed.
    memory: Option<(Arc<Held>, u64)>,
    /// Runs of dropped resources, and their charges until the last is freed.
    runs: Vec<(Remains, Charge)>,
}

impl Disposal {
    /// Adds one that is not mapped.
    pub(in crate::gpu) fn add(&mut self, id: ResourceId, resource: Resource) {
        self.resources.insert(id, resource);
    }

    /// Adds all resources of a device; [`Disposal::run`] unmaps them.
    pub(in crate::gpu) fn add_all(&mut self, resources: BTreeMap<ResourceId, Resource>) {
        // Of the two at most one is not empty: a reset comes after the disposal of the one before.
        if self.resources.is_empty() {
            self.resources = resources;
        } else {
            self.resources.extend(resources);
        }
    }

    /// Adds the former backing of a resource that still exists.
    pub(in crate::gpu) fn add_backed(&mut self, backed: Backed) {
        self.runs.push((backed.backing.into_remains(), backed.charge));
    }

    /// Nothing is left.
    pub(in crate::gpu) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.memory.is_none() && self.runs.is_empty()
    }

    /// Frees until nothing is left or `deadline` passes.
    pub(in crate::gpu) fn run(&mut self, window: &mut Window, deadline: &mut Deadline) -> Progress {
        loop {
            if let Some((memory, freed)) = self.memory.take() {
                self.memory = free_step(memory, freed, deadline);
            } else if let Some((mut remains, charge)) = self.runs.pop() {
                let freed = remains.free(RUNS);
                deadline.charge(Deadline::ENTRY + freed as u64 * FREE_RUN);
                if freed == RUNS {
                    self.runs.push((remains, charge));
                }
            } else if let Some((_, resource)) = self.resources.pop_first() {
                let (memory, backed) = take_apart(resource, window, deadline);
                self.memory = memory;
                if let Some(backed) = backed {
                    self.add_backed(backed);
                }
            } else {
                return Progress::Done;
            }
            if deadline.passed() {
                return Progress::more_if(!self.is_empty());
            }
        }
    }
}

/// Frees a resource except for its host memory and its backing, which are returned.
fn take_apart(
    resource: Resource,
    window: &mut Window,
    deadline: &mut Deadline,
) -> (Option<(Arc<Held>, u64)>, Option<Backed>) {
    deadline.charge(Deadline::ENTRY);
    match resource.kind {
        ResourceKind::Image(image) => (image.pixels.map(|pixels| (pixels, 0)), image.backed),
        ResourceKind::GuestBlob(blob) => (None, Some(blob.backed)),
        ResourceKind::HostBlob(blob) => {
            if let Some(offset) = blob.mapped {
                deadline.charge(Deadline::SYSCALL);
                // If the host fails to unmap, the window keeps the memory alive.
                let _ = window.unmap(offset);
            }
            (Some((blob.memory, 0)), None)
        }
    }
}

/// Frees a step of `memory`, of which `freed` bytes are freed; it comes back unless it is done.
fn free_step(memory: Arc<Held>, freed: u64, deadline: &mut Deadline) -> Option<(Arc<Held>, u64)> {
    let end = (freed + STEP).min(memory.len());
    if Arc::strong_count(&memory) > 1 || freed == memory.len() {
        // A window that could not unmap it still uses it: only this reference is dropped.
        return None;
    }
    memory.discard(usize_from(freed)..usize_from(end));
    deadline.charge(Deadline::ENTRY + (end - freed) / FREE_BYTE);
    (end < memory.len()).then_some((memory, end))
}
