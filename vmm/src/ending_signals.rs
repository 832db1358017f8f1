// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals that stop the monitor: all that would end a process and do not report its own error.
//! Uncaught, they would leave a raw terminal and sockets behind.

/// The signals, by name.
pub(crate) const ENDING: [(libc::c_int, &str); 13] = [
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    // The process has used up its processor time (setrlimit(2), RLIMIT_CPU).
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
];

/// The name of signal `number`, if it is one of these.
pub(crate) fn name(number: u32) -> Option<&'static str> {
    let same = |(known, _): &&(libc::c_int, &str)| u32::try_from(*known) == Ok(number);
    ENDING.iter().find(same).map(|(_, name)| *name)
}

/// The number of the signal called `name`, if it is one of these.
pub(crate) fn number(name: &str) -> Option<libc::c_int> {
    ENDING.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}
