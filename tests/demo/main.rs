// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demo of Ballast with a real guest: `cargo xtask demo` runs this where KVM works. Every
//! figure printed is read from the host or the guest when it is printed.

use std::process::ExitCode;

use clap::Parser;
use harness::guest::Guest;
use harness::monitor::{Kind, Program, Spec};
use harness::payload::{Folders, Payload};
use harness::{Error, Result, host};

/// The guest's memory, and what it is asked to give up, in MiB.
const MEMORY: u64 = 1024;
const BALLOON: u64 = 640;

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    folders: Folders,
}

fn main() -> ExitCode {
    match show(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(options: &Options) -> Result<()> {
    let payload = Payload::new(&options.folders.payload);
    let program = Program { kind: Kind::Ballast, path: payload.ballast() };
    let mut last = Free::measure()?;
    println!("A guest of {MEMORY} MiB, and free memory of the host after each step.");
    println!();
    println!("{:58}{:>10}  {:>10}", "", "host free", "change");
    println!("{:58}{:>6} MiB", "before", last.mib());

    let mut guest = Guest::boot(&program, Spec::new(&payload, MEMORY), &options.folders.logs)?;
    let booted = format!("the guest has booted, in {:.1} s", guest.boot_time.as_secs_f64());
    last = last.then(&booted)?;

    guest.touch_everything()?;
    last = last.then("programs in it fill its memory, and end: it keeps it")?;

    guest.balloon_to(BALLOON)?;
    let inflated =
        last.then(&format!("PATCH /balloon {{\"amount_mib\": {BALLOON}}}: it gives it up"))?;
    let returned = inflated.mib() - last.mib();
    let meminfo = guest.agent.meminfo()?;
    let inside = meminfo.get("MemFree").copied().unwrap_or(0) >> 20;
    println!("  (inside the guest, {inside} MiB are left free)");
    last = inflated;

    guest.balloon_to(0)?;
    last = last.then("PATCH /balloon {\"amount_mib\": 0}: it may use it again")?;
    let available = guest.agent.meminfo()?["MemAvailable"] >> 20;
    let filled = available.saturating_sub(64);
    guest.agent.command(&format!("fill program {filled}M"))?;
    last = last.then(&format!("and a program fills {filled} MiB of it"))?;
    guest.agent.verify("verify program")?;
    guest.agent.command("free program")?;

    let status = guest.power_off()?;
    last.then(&format!("the guest powers off; Ballast ends with {status}"))?;
    println!();
    println!("Of {BALLOON} MiB given up, {returned} came back to the host as free memory.");
    if returned <= 0 {
        return Err(Error::Check("no memory came back".into()));
    }
    Ok(())
}

/// The host's free memory at one moment.
struct Free(u64);

impl Free {
    fn measure() -> Result<Self> {
        Ok(Self(host::settled_free()?))
    }

    fn mib(&self) -> i64 {
        i64::try_from(self.0 >> 20).unwrap_or(i64::MAX)
    }

    /// Measures again, after `what` happened, and prints the change.
    fn then(&self, what: &str) -> Result<Self> {
        let now = Self::measure()?;
        println!("{what:58}{:>6} MiB  {:>+6} MiB", now.mib(), now.mib() - self.mib());
        Ok(now)
    }
}
