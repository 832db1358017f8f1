// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine as a whole: start, pause, stop.

use std::time::Instant;

use tracing::{info, warn};

use super::{Controller, done, failed};
use crate::api::instance::{Instance, InstanceAction, InstanceReply};
use crate::api::{Refusal, Reply};
use crate::config::VmConfig;
use crate::exit::ExitReason;
use crate::machine;
use crate::own_memory;

impl Controller {
    pub(super) fn instance_action(
        &mut self,
        action: InstanceAction,
        asked: Instant,
    ) -> Result<Reply, Refusal> {
        match action {
            InstanceAction::Get => Ok(InstanceReply::Instance(self.instance()).into()),
            InstanceAction::GetConfig => {
                Ok(InstanceReply::Config(Box::new(self.current_config())).into())
            }
            InstanceAction::Start => {
                let started = self.start();
                own_memory::give_back_start_up();
                done(started)
            }
            InstanceAction::Pause => {
                let started = Instant::now();
                self.vm()?.pause().map_err(failed)?;
                self.metrics.note_pause(asked, started);
                Ok(Reply::Done)
            }
            InstanceAction::Resume => {
                let started = Instant::now();
                self.vm()?.resume();
                self.metrics.note_resume(asked, started);
                Ok(Reply::Done)
            }
            InstanceAction::SendCtrlAltDel => done(self.vm()?.send_ctrl_alt_del()),
            InstanceAction::FlushMetrics => self.flush_metrics().map(|()| Reply::Done),
            InstanceAction::Stop => {
                self.events.exit().raise(ExitReason::Stopped("a request".into()));
                Ok(Reply::Done)
            }
        }
    }

    fn instance(&self) -> Instance {
        Instance {
            app_name: "Ballast".into(),
            id: self.id.clone(),
            state: self.phase(),
            vmm_version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// The machine's current configuration.
    fn current_config(&self) -> VmConfig {
        VmConfig { balloon: self.balloon_config().ok(), ..self.config.clone() }
    }

    /// Builds the machine that the configuration describes, and starts its vCPUs.
    ///
    /// # Errors
    ///
    /// The configuration is invalid or incomplete, or the host cannot provide a part of the
    /// machine; the configuration is unchanged.
    pub fn start(&mut self) -> Result<(), Refusal> {
        self.config.validate(&self.host).map_err(Refusal::Invalid)?;
        let vm = machine::build(&self.config, &self.events, &self.mmds).map_err(failed)?;
        self.vm = Some(vm);
        let started = self.prepare_memory().and_then(|()| self.run_vcpus());
        if started.is_err() {
            // In the order of the fields: each may use what comes after it.
            self.policy = None;
            self.compactor = None;
            self.vm = None;
            self.parking = None;
            return started;
        }
        if let Err(error) = self.start_metrics() {
            warn!(%error, "cannot write metrics");
        }
        Ok(())
    }

    fn run_vcpus(&mut self) -> Result<(), Refusal> {
        let vm = self.vm.as_mut().ok_or(Refusal::BeforeStart)?;
        let machine = &self.config.machine_config;
        // Before the guest's first byte, which may go to the same stream.
        info!(id = self.id, vcpus = machine.vcpu_count, mib = machine.mem_size_mib, "starting");
        vm.start(self.mode).map_err(failed)?;
        if self.mode.keeps_socket() {
            vm.keep_sockets();
        }
        Ok(())
    }

    /// Starts what the configuration says about host memory.
    fn prepare_memory(&mut self) -> Result<(), Refusal> {
        if self.config.memory.compaction.is_some() {
            self.compactor()?;
        }
        if self.config.memory.paging.is_some() {
            self.start_paging()?;
        }
        if let Some(policy) = self.config.memory.policy {
            self.apply_policy(policy)?;
        }
        Ok(())
    }
}
