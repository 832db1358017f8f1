// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tests that boot real guests, in one machine or in several outer machines side by side, which
//! take the tests from one list.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::build::Profile;
use crate::count::Count;
use crate::error::{IoContext, Result};
use crate::outer::{Place, Size};
use crate::payload::{self, KernelChoice, Payload};
use crate::{apt, debian};

/// The program of the payload.
const PROGRAM: &str = "guest-tests";
/// Programs of the host that guest tests use, and Debian's packages with them.
const TOOLS: [(&str, &str); 4] =
    [("mke2fs", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("ip", "iproute2"), ("iperf3", "iperf3")];

/// The tests, with everything that they need.
#[derive(Debug)]
pub(crate) struct GuestTests {
    payload: Payload,
    arguments: Vec<OsString>,
    results: PathBuf,
}

impl GuestTests {
    /// Builds what is missing, and empties the folder for results.
    pub(crate) fn prepare(kernel: &KernelChoice) -> Result<Self> {
        let mut payload = Payload::assemble(Profile::TestRelease, kernel)?;
        payload.add_image()?;
        apt::ensure("the guest tests", &TOOLS.map(|(_, package)| package))?;
        for (name, package) in TOOLS {
            payload.add_program(name, &debian::program(name, package)?)?;
        }
        payload.add_installed(&debian::program("passt", "passt")?);
        let mut arguments: Vec<OsString> = Vec::new();
        if kernel.debug {
            // Instrumented code in an emulated machine.
            arguments.extend(["--patience=6".into(), "--debug-kernel".into()]);
        } else if Place::find().0 == Place::Outer {
            // Limits are made for a quiet machine; this one may have other work, and two of these.
            arguments.push("--patience=3".into());
        }
        Ok(Self { payload, arguments, results: payload::results(PROGRAM)? })
    }

    /// Runs them with further arguments: here if KVM works, otherwise in as many outer machines as given.
    pub(crate) fn run(
        &self,
        machines: u32,
        arguments: &[OsString],
        limit: Duration,
    ) -> Result<Count> {
        match Place::choose() {
            Place::Here => {
                let arguments = [&self.arguments, arguments].concat();
                let status = self.payload.run_here(PROGRAM, &arguments, &self.results)?;
                Count::read(&self.results, status)
            }
            Place::Outer if machines < 2 => self.run_outer(&self.results, arguments, limit),
            Place::Outer => thread::scope(|scope| {
                let machines: Vec<_> = (1..=machines)
                    .map(|number| {
                        scope.spawn(move || self.share(&number.to_string(), arguments, limit))
                    })
                    .collect();
                let mut all = Count::default();
                for machine in machines {
                    let count = machine.join();
                    all.add(count.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
                }
                Ok(all)
            }),
        }
    }

    /// Runs those that no other machine takes, in the outer machine called `name`.
    pub(crate) fn share(
        &self,
        name: &str,
        arguments: &[OsString],
        limit: Duration,
    ) -> Result<Count> {
        let claims = self.results.join("claims");
        let results = self.results.join(name);
        for dir in [&claims, &results] {
            fs::create_dir_all(dir).doing("creating", dir)?;
        }
        let mut shared = OsString::from("--claims=/host");
        shared.push(&claims);
        self.run_outer(&results, &[arguments, &[shared]].concat(), limit)
    }

    fn run_outer(&self, results: &Path, arguments: &[OsString], limit: Duration) -> Result<Count> {
        let arguments = [&self.arguments, arguments].concat();
        let status = self.payload.run_outer(PROGRAM, &arguments, results, Size::TESTS, limit)?;
        Count::read(results, status)
    }
}
