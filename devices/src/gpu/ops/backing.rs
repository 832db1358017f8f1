// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory of resources: RESOURCE_ATTACH_BACKING, _DETACH_BACKING, _MIGRATE_BACKING, and
//! MIGRATE_PAGES.

use std::collections::BTreeMap;

use mm::units::BLOCK_SIZE;

use crate::gpu::backing::Backing;
use crate::gpu::engine::{Engine, Guest};
use crate::gpu::migrate::migrate;
use crate::gpu::protocol::{MemEntry, MigrateEntry, MigratePage, ResourceId};
use crate::gpu::resource::{Image, Kind};
use crate::gpu::response::{Fault, PageMove, Response};

impl Engine {
    pub(in crate::gpu) fn attach_backing(
        &mut self,
        guest: Guest<'_>,
        id: ResourceId,
        entries: &[MemEntry],
    ) -> Result<Response, Fault> {
        if self.image(id)?.backing.is_some() {
            return Err(Fault::WrongState);
        }
        let (backing, charge) = self.backing(guest, entries)?;
        self.image(id)?.backing = Some(backing);
        self.backed(id, charge);
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn detach_backing(&mut self, id: ResourceId) -> Result<Response, Fault> {
        self.image(id)?.backing.take().ok_or(Fault::WrongState)?;
        self.resources.set_charge(id, 0);
        Ok(Response::NoData)
    }

    pub(in crate::gpu) fn migrate_backing(
        &mut self,
        guest: Guest<'_>,
        id: ResourceId,
        entries: &[MigrateEntry],
    ) -> Result<Response, Fault> {
        self.migrate_resource(guest, id, entries).map(|()| Response::NoData)
    }

    /// Pages of several resources: those of one resource move together or not at all, and no
    /// resource depends on another.
    pub(in crate::gpu) fn migrate_pages(
        &mut self,
        guest: Guest<'_>,
        pages: &[MigratePage],
    ) -> Result<Response, Fault> {
        if pages.is_empty() {
            return Err(Fault::Parameter);
        }
        let mut resources: BTreeMap<ResourceId, Vec<MigrateEntry>> = BTreeMap::new();
        for page in pages {
            resources.entry(page.resource.get()).or_default().push(page.entry);
        }
        let outcomes: BTreeMap<ResourceId, PageMove> = resources
            .into_iter()
            .map(|(id, entries)| match self.migrate_resource(guest, id, &entries) {
                Ok(()) => (id, PageMove::Moved),
                Err(_) => (id, PageMove::Refused),
            })
            .collect();
        let outcome = |page: &MigratePage| outcomes.get(&page.resource.get()).copied();
        let moves = pages.iter().map(|page| outcome(page).unwrap_or(PageMove::Refused)).collect();
        Ok(Response::MigratePages(moves))
    }

    fn migrate_resource(
        &mut self,
        guest: Guest<'_>,
        id: ResourceId,
        entries: &[MigrateEntry],
    ) -> Result<(), Fault> {
        let backing =
            self.resources.get_mut(id).and_then(|r| r.backing_mut().ok_or(Fault::ResourceId));
        match backing.and_then(|backing| migrate(guest.mem, backing, entries)) {
            Ok(pages) => {
                self.counters.migrations += 1;
                self.counters.migrated_pages += pages;
                Ok(())
            }
            Err(fault) => {
                self.counters.migrations_failed += 1;
                Err(fault)
            }
        }
    }

    /// The backing that `entries` describe, and what it is charged for.
    pub(super) fn backing(
        &self,
        guest: Guest<'_>,
        entries: &[MemEntry],
    ) -> Result<(Backing, u64), Fault> {
        let backing = Backing::new(guest.mem, entries)?;
        let charge = Backing::worst_runs(entries.len(), backing.len());
        self.resources.check_charge(charge)?;
        Ok((backing, charge))
    }

    /// `id` has the backing that `charge` is for.
    pub(super) fn backed(&mut self, id: ResourceId, charge: u64) {
        self.resources.set_charge(id, charge);
        let large = |backing: &Backing| backing.len() >= BLOCK_SIZE;
        if let Some(tell) = &self.wants_blocks
            && self.resources.get(id).is_ok_and(|r| r.backing().is_some_and(large))
        {
            tell();
        }
    }

    fn image(&mut self, id: ResourceId) -> Result<&mut Image, Fault> {
        match &mut self.resources.get_mut(id)?.kind {
            Kind::Image(image) => Ok(image),
            Kind::GuestBlob(_) | Kind::HostBlob(_) => Err(Fault::WrongKind),
        }
    }
}
