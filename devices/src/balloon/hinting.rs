// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page hinting: command ids, and which hints still count (virtio 1.3, 5.5.6.5).
//!
//! ```text
//! host:  start ─▶ id n ................................. DONE (by itself, or on stop)
//! guest:            "n", hint, hint, hint, ..., "STOP"    pages go back to its free lists
//! ```
//!
//! A hint counts only between the guest's echo of the *current* ID and its STOP. An ID is never
//! used twice in a row, so a hint of an earlier run is never mistaken for one of this run.

use super::protocol::{CMD_ID_DONE, CMD_ID_STOP};

/// First id that is not one of the two commands.
const FIRST_ID: u32 = CMD_ID_DONE + 1;

/// State of one hinting run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hinting {
    /// What configuration space says.
    host_cmd: u32,
    /// The guest's last command.
    guest_cmd: Option<u32>,
    /// Id of the last run.
    last_id: u32,
    /// Whether the guest gets its pages back as soon as it has hinted them all.
    acknowledge_on_stop: bool,
}

/// Status of hinting for the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintingStatus {
    /// The command that the host gave last.
    pub host_cmd: u32,
    /// The command that the guest has seen last, if any.
    pub guest_cmd: Option<u32>,
}

impl Default for Hinting {
    fn default() -> Self {
        Self {
            host_cmd: CMD_ID_STOP,
            guest_cmd: None,
            last_id: FIRST_ID - 1,
            acknowledge_on_stop: true,
        }
    }
}

impl Hinting {
    /// Starts a run. The caller must notify the driver.
    pub(super) fn start(&mut self, acknowledge_on_stop: bool) {
        self.last_id = self.last_id.checked_add(1).unwrap_or(FIRST_ID);
        self.host_cmd = self.last_id;
        self.acknowledge_on_stop = acknowledge_on_stop;
    }

    /// Ends the run: the guest may reuse its pages. The caller must notify the driver.
    pub(super) fn stop(&mut self) {
        self.host_cmd = CMD_ID_DONE;
    }

    /// Handles a command from the guest; returns whether the driver must be notified of a change.
    pub(super) fn guest_command(&mut self, command: u32) -> bool {
        let ran = self.running();
        self.guest_cmd = Some(command);
        if ran && command == CMD_ID_STOP && self.acknowledge_on_stop {
            self.stop();
            return true;
        }
        false
    }

    /// Whether a hint counts now.
    pub(super) fn running(&self) -> bool {
        self.host_cmd >= FIRST_ID && self.guest_cmd == Some(self.host_cmd)
    }

    /// The driver was reset; IDs continue from the last one.
    pub(super) fn reset(&mut self) {
        *self = Self { last_id: self.last_id, ..Self::default() };
    }

    /// For the API.
    pub(super) fn status(&self) -> HintingStatus {
        HintingStatus { host_cmd: self.host_cmd, guest_cmd: self.guest_cmd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_from_the_echo_to_the_stop() {
        let mut hinting = Hinting::default();
        assert!(!hinting.running());
        hinting.start(true);
        assert_eq!(hinting.status(), HintingStatus { host_cmd: 2, guest_cmd: None });
        assert!(!hinting.running());
        assert!(!hinting.guest_command(2));
        assert!(hinting.running());
        assert!(hinting.guest_command(CMD_ID_STOP));
        assert!(!hinting.running());
        assert_eq!(hinting.status().host_cmd, CMD_ID_DONE);
    }

    #[test]
    fn without_acknowledgement_the_guest_waits_for_the_host() {
        let mut hinting = Hinting::default();
        hinting.start(false);
        hinting.guest_command(2);
        assert!(!hinting.guest_command(CMD_ID_STOP));
        assert_eq!(hinting.status().host_cmd, 2);
        hinting.stop();
        assert_eq!(hinting.status().host_cmd, CMD_ID_DONE);
    }

    #[test]
    fn hints_of_another_run_do_not_count() {
        let mut hinting = Hinting::default();
        hinting.start(true);
        hinting.guest_command(2);
        hinting.start(true);
        assert!(!hinting.running(), "the guest has not seen the new id");
        hinting.guest_command(2);
        assert!(!hinting.running());
        assert!(!hinting.guest_command(CMD_ID_STOP), "the end of a run that is over");
        hinting.guest_command(3);
        assert!(hinting.running());
        hinting.stop();
        assert!(!hinting.running());
    }

    #[test]
    fn commands_are_never_taken_for_ids() {
        let mut hinting = Hinting { last_id: u32::MAX, ..Hinting::default() };
        hinting.start(true);
        assert_eq!(hinting.status().host_cmd, FIRST_ID);
        hinting.stop();
        hinting.guest_command(CMD_ID_DONE);
        assert!(!hinting.running());
        hinting.reset();
        hinting.guest_command(CMD_ID_STOP);
        assert!(!hinting.running());
        hinting.start(true);
        assert_eq!(hinting.status().host_cmd, FIRST_ID + 1);
    }
}
