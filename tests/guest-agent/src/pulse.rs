// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pulse of the outer machine: an interrupt, at least once a second, that does not come from its
//! CPUs' own timers, and a sign of life to the host.
//!
//! QEMU 7.2 (`target/i386/tcg/sysemu/svm_helper.c`) sets and clears a CPU's flags for virtual
//! interrupts as a virtual machine is entered and left, without the lock under which other threads
//! flag it for real ones. Where the two meet, a flag is lost: the interrupt stays in the local APIC's
//! IRR, and the CPU, halted by then, is never told. If that was its timer, it sleeps forever. Any
//! interrupt that comes later makes QEMU look into the IRR again, so one that always comes mends it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{self, NoArg, opcode};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Time between two signs of life.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long to wait for the clock: it ticks every second.
const TICK_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Keeps the machine going for as long as it runs, and writes to `alive`, a file of the host's,
/// where one was given. The host notices when nothing comes.
pub(crate) fn keep(alive: Option<&File>) {
    let mut clock = Clock::open();
    if let Err(error) = &clock {
        eprintln!("ballast-agent: the clock does not tick: {error}");
    }
    // Asked now: later this thread may run on one only.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut written: Option<Instant> = None;
    loop {
        if let Some(file) = alive
            && written.is_none_or(|at| at.elapsed() >= ALIVE_EVERY)
        {
            let _ = file.write_all_at(b".", 0);
            written = Some(Instant::now());
        }
        match &mut clock {
            Ok(clock) => clock.wait(),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
        wake(cpus);
    }
}

/// The real-time clock, whose interrupt is a device's.
struct Clock(File);

impl Clock {
    /// Has it interrupt at every full second.
    fn open() -> io::Result<Self> {
        /// rtc(4): RTC_UIE_ON, update interrupts on. In `linux/rtc.h`.
        const UPDATE_INTERRUPTS_ON: ioctl::Opcode = opcode::none(b'p', 3);
        let clock = OpenOptions::new().read(true).open("/dev/rtc0")?;
        // SAFETY: the request is one without an argument.
        let request = unsafe { NoArg::<UPDATE_INTERRUPTS_ON>::new() };
        // SAFETY: it touches no memory of ours.
        unsafe { ioctl::ioctl(&clock, request) }?;
        Ok(Self(clock))
    }

    /// Waits for the next second.
    fn wait(&mut self) {
        let mut clock = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut clock, Some(&TICK_LIMIT)).is_ok_and(|ready| ready > 0) {
            // How many there were since the last time is of no interest.
            let _ = self.0.read(&mut [0; size_of::<libc::c_ulong>()]);
        }
    }
}

/// The clock interrupts one CPU. Moving this thread to each of the others interrupts those too.
fn wake(cpus: usize) {
    for cpu in (0..cpus).filter(|_| cpus > 1) {
        let mut only = CpuSet::new();
        only.set(cpu);
        let _ = sched_setaffinity(None, &only);
    }
}
