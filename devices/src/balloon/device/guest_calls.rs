// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon as its transport sees it.

use std::any::Any;

use mm::units::Pages;
use zerocopy::IntoBytes;

use super::{ActiveBalloon, Balloon, NAME};
use crate::balloon::balloon_core::BalloonCore;
use crate::balloon::protocol::{BalloonConfigSpace, DEVICE_TYPE, feature};
use crate::balloon::roles::{self, BalloonQueue};
use crate::balloon::serving::Serving;
use crate::virtio::{
    Activation, Deadline, DeviceFailure, Progress, VirtioDevice, read_config_slice,
};

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Single pages (inflate, deflate, hints) are processed on the notifying vCPU; everything else
    /// in the event loop.
    ///
    /// For hints it is a matter of safety, see [`finishes_at_notify`](Self::finishes_at_notify). For
    /// inflation and deflation it is a matter of speed: the driver waits for each buffer of 256
    /// pages, and so finds it used when it looks, where it would have slept until the event loop had
    /// run and interrupted it.
    fn runs_at_notify(&self, queue: u16) -> bool {
        let at_notify = [BalloonQueue::Inflate, BalloonQueue::Deflate, BalloonQueue::Hints];
        match &self.active {
            Some(active) => active.role(queue).is_some_and(|role| at_notify.contains(&role)),
            None => at_notify.iter().any(|role| roles::possible(self.features, queue, *role)),
        }
    }

    /// Hints: the driver puts a hinted page where the guest may take it again as soon as it has
    /// notified (Linux `get_free_page_and_send`). By then the page must have been discarded, or
    /// guest data would be lost.
    fn finishes_at_notify(&self, queue: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.role(queue) == Some(BalloonQueue::Hints))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = BalloonConfigSpace {
            num_pages: self.core.target.goal_on_wire().into(),
            free_page_hint_cmd_id: self.hinting.status().host_cmd.into(),
            ..self.config
        };
        let config = config.as_bytes();
        let len = match self.features & feature::BLOCKS {
            0 => BalloonConfigSpace::STANDARD_LEN,
            _ => config.len(),
        };
        read_config_slice(&config[..len], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data) else { return };
        match offset {
            BalloonConfigSpace::ACTUAL => self.config.actual = value.into(),
            BalloonConfigSpace::POISON_VAL => self.config.poison_val = value.into(),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailure> {
        let Activation { features, interrupt, queues, .. } = activation;
        if features & feature::EVACUATE != 0 && features & feature::BLOCKS == 0 {
            return Err(self.refuse("EVACUATE was accepted without BLOCKS"));
        }
        let roles: Vec<BalloonQueue> = roles::of(features).collect();
        if let Some(queue) = roles.iter().zip(&queues).position(|(_, queue)| !queue.ready()) {
            return Err(self.refuse(format_args!("queue {queue} was not set up")));
        }
        self.core.pool.set_patient(features & feature::MUST_TELL_HOST != 0);
        self.active = Some(ActiveBalloon { features, interrupt, roles, queues });
        self.polling.schedule();
        self.end_turn();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        let leaving = [&self.deflating, &self.blocks].into_iter().filter_map(Serving::work);
        let leaving = leaving.flat_map(|work| work.restoring()).collect();
        let queues = [
            &mut self.inflating,
            &mut self.deflating,
            &mut self.blocks,
            &mut self.reporting,
            &mut self.hints,
        ];
        queues.into_iter().for_each(Serving::reset);
        // The driver that lent memory has been reset.
        self.core.target.set_surplus(Pages(0));
        self.core.target.set_advance(Pages(0));
        self.core.pool.forget(leaving);
        self.core.migrations = Default::default();
        self.hinting.reset();
        self.polling.reset();
        self.evacuation.reset(&mut self.core.journal);
        self.config.actual = 0.into();
        self.config.poison_val = 0.into();
        self.core.pool.work(&mut self.core.journal, &mut Deadline::new());
        self.end_turn();
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.core.pool.take_remains()
    }

    /// Restores the memory that the last driver had given up, where the host must allocate it
    /// before the guest may access it.
    fn clean_up(&mut self, deadline: &mut Deadline) -> Progress {
        let BalloonCore { pool, journal, .. } = &mut self.core;
        pool.restore_forgotten(journal, deadline);
        Progress::more_if(pool.to_restore() > Pages(0))
    }

    fn process(&mut self, queue: u16, deadline: &mut Deadline) -> Result<Progress, DeviceFailure> {
        let Some(mut active) = self.active.take() else { return Ok(Progress::Done) };
        let result = self.dispatch(&mut active, queue, deadline);
        self.active = Some(active);
        self.end_turn();
        result.map_err(|error| DeviceFailure::new(NAME, error))
    }
}
