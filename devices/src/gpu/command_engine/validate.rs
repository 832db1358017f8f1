// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recount of the device's counters.

use super::CommandEngine;
use crate::gpu::resource::ResourceKind;

impl CommandEngine {
    /// Recounts everything; panics where a count is off.
    pub(in crate::gpu) fn validate(&self) {
        self.resources.validate(&self.cma);
        let (mut held, mut mapped) = (0, 0);
        for (_, resource) in self.resources.iter() {
            match &resource.kind {
                ResourceKind::Image(image) => held += image.pixels.as_ref().map_or(0, |p| p.len()),
                ResourceKind::HostBlob(blob) => {
                    held += blob.memory.len();
                    mapped += blob.mapped.map_or(0, |_| blob.memory.len());
                }
                ResourceKind::GuestBlob(_) => {}
            }
        }
        // Between two rounds of an UNREF there is more than resources have.
        assert!(self.host.used() >= held, "host memory of all resources");
        assert!(self.window.mapped_bytes() >= mapped, "mappings of all resources");
        if self.disposal.is_empty() {
            assert_eq!(self.host.used(), held, "host memory of all resources");
            assert_eq!(self.window.mapped_bytes(), mapped, "mappings of all resources");
        }
        for surface in self.scanouts.surfaces() {
            let resource = self.resources.get(surface.resource);
            assert!(
                resource.is_ok_and(|r| surface.layout.fits(r.size())),
                "a scanout refers to a resource that is missing or too small"
            );
        }
    }
}
