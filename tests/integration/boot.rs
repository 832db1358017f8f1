// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernels, memory sizes, ways to stop, and leftovers.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::guest::{EXIT_LIMIT, Guest};
use harness::monitor::{Monitor, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use rustix::process::{Pid, Signal, kill_process};

fn boot(context: &Context, spec: Spec) -> Result<Guest> {
    Guest::boot(&context.ballast(), spec, &context.logs)
}

/// Memory that the guest's kernel manages, in MiB.
fn total_mib(guest: &mut Guest) -> Result<u64> {
    Ok(guest.agent.meminfo()?["MemTotal"] >> 20)
}

/// An ELF vmlinux, with one vCPU, powered off from within.
pub(crate) fn elf_kernel(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::new(&context.payload, 256))?;
    check_eq!(guest.agent.command("pick /proc/cpuinfo processor")?.len(), 1);
    let total = total_mib(&mut guest)?;
    check!((200..=256).contains(&total), "{total} MiB of 256");
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A bzImage, with two vCPUs.
pub(crate) fn bz_image_with_two_cpus(context: &Context) -> Result<()> {
    let spec =
        Spec { kernel: context.payload.bz_image(), cpus: 2, ..Spec::new(&context.payload, 256) };
    let mut guest = boot(context, spec)?;
    check_eq!(guest.agent.command("pick /proc/cpuinfo processor")?.len(), 2);
    check_eq!(guest.agent.command("read /sys/devices/system/cpu/online")?, ["0-1"]);
    // Both really run: work on both at once.
    guest.agent.start_busy(2, "16M")?;
    guest.agent.command("fill a 16M")?;
    guest.agent.verify("verify a")?;
    guest.agent.verify("busy-stop")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Debian's kernel finds its virtio devices through ACPI, and uses the balloon.
pub(crate) fn debian_kernel(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::debian(&context.payload, 512))?;
    let release = guest.agent.command("read /proc/sys/kernel/osrelease")?.join("");
    check!(release.contains("deb12"), "{release}");
    let devices = guest.agent.command("list /sys/bus/virtio/drivers/virtio_balloon")?;
    check!(devices.iter().any(|name| name.starts_with("virtio")), "{devices:?}");
    guest.balloon_to(128)?;
    guest.balloon_to(0)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A small guest, all of whose memory is used.
pub(crate) fn memory_of_128_mib(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::new(&context.payload, 128))?;
    let available = guest.agent.meminfo()?["MemAvailable"] >> 20;
    guest.agent.command(&format!("fill a {}M", available - 12))?;
    guest.agent.verify("verify a")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Memory above the hole below 4 GiB, which the guest's kernel hands out first.
pub(crate) fn memory_of_5_gib(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::new(&context.payload, 5 << 10))?;
    let total = total_mib(&mut guest)?;
    check!((4800..=5120).contains(&total), "{total} MiB of 5120");
    let zones = guest.agent.command("read /proc/buddyinfo")?.join("\n");
    check!(zones.contains("Normal"), "no memory above 4 GiB: {zones}");
    guest.agent.command("fill a 512M")?;
    guest.balloon_to(2048)?;
    guest.agent.verify("verify a")?;
    guest.balloon_to(0)?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// A reset through the keyboard controller stops the monitor, which prints the reason.
pub(crate) fn reboot_ends_the_monitor(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::new(&context.payload, 128))?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "reset")
}

/// So does a triple fault.
pub(crate) fn triple_fault_ends_the_monitor(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 128);
    // The later option overrides the usual reboot=k.
    spec.boot_args = "reboot=t".into();
    let mut guest = boot(context, spec)?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "triple fault")
}

/// A distribution's kernel without a reboot option: with EFI support and hardware-reduced ACPI it
/// jumps to the PC firmware's address.
pub(crate) fn reboot_without_an_option_ends_the_monitor(context: &Context) -> Result<()> {
    let mut spec = Spec::debian(&context.payload, 512);
    spec.says_how_to_reboot = false;
    let mut guest = boot(context, spec)?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "reset")
}

/// The jump to F000:FFF0 in real mode, by itself.
pub(crate) fn jump_to_firmware_ends_the_monitor(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 128);
    spec.boot_args = "reboot=b".into();
    let mut guest = boot(context, spec)?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "ACPI reset register")
}

/// Without ACPI: two vCPUs by the MP table, devices by the command line, an odd size of memory.
pub(crate) fn without_acpi_all_cpus_and_devices_are_found(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 193);
    (spec.boot_args, spec.cpus) = ("acpi=off".into(), 2);
    let mut guest = boot(context, spec)?;
    check_eq!(guest.agent.command("read /sys/devices/system/cpu/online")?, ["0-1"]);
    guest.balloon_to(32)?;
    guest.balloon_to(0)?;
    guest.check_kernel_is_content()?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "keyboard controller")
}

/// Default arguments of old clients: console and devices work without an IOAPIC.
pub(crate) fn without_an_ioapic_devices_work(context: &Context) -> Result<()> {
    let mut spec = Spec::new(&context.payload, 128);
    spec.boot_args = "noapic".into();
    let mut guest = boot(context, spec)?;
    guest.balloon_to(32)?;
    guest.balloon_to(0)?;
    guest.check_kernel_is_content()?;
    guest.agent.farewell("reboot")?;
    ends_saying(guest, "keyboard controller")
}

/// And a guest whose kernel panics, which resets it.
pub(crate) fn guest_panic_ends_the_monitor(context: &Context) -> Result<()> {
    let mut guest = boot(context, Spec::new(&context.payload, 128))?;
    let position = guest.monitor.console().position();
    guest.agent.farewell("panic")?;
    guest.monitor.console().wait_for(position, "Kernel panic", EXIT_LIMIT)?;
    ends_saying(guest, "reset")
}

fn ends_saying(mut guest: Guest, words: &str) -> Result<()> {
    let status = guest.monitor.wait_exit(EXIT_LIMIT)?;
    check_eq!(status.code(), Some(0));
    let said = guest.monitor.stderr();
    check!(said.contains(words), "no {words:?} in: {said}");
    Ok(())
}

/// Fifty guests in a row, half of them powered off from within and half ended by a signal, leave
/// no process, no file, no socket and no memory behind.
pub(crate) fn fifty_starts_leave_nothing_behind(context: &Context) -> Result<()> {
    let name = "ballast";
    let files_before = files()?;
    let mut free_before = None;
    for number in 0..50 {
        let spec = Spec::new(&context.payload, 128);
        if number % 2 == 0 {
            check_eq!(boot(context, spec)?.power_off()?.code(), Some(0));
        } else {
            let mut monitor = Monitor::start(&context.ballast(), &spec, &context.logs)?;
            monitor.console().wait_for(0, "Linux version", Duration::from_secs(60))?;
            monitor.wait_for_api(Duration::from_secs(60))?;
            terminate(monitor.pid())?;
            let status = monitor.wait_exit(EXIT_LIMIT)?;
            check!(status.code() == Some(0), "ended by a signal: {status}");
            check!(!monitor.api().socket().exists(), "the socket is still there");
        }
        check_eq!(host::processes_named(name)?, Vec::<u32>::new());
        // The first ones fill the host's own caches.
        if number == 4 {
            free_before = Some(host::settled_free()?);
        }
    }
    check_eq!(files()?, files_before);
    let free_before = free_before.unwrap_or_default();
    let free_after = host::settled_free()?;
    check!(
        free_after + (16 << 20) > free_before,
        "free memory fell from {free_before} to {free_after} bytes"
    );
    Ok(())
}

pub(crate) fn terminate(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::Check("no such process".into()))?;
    kill_process(pid, Signal::TERM).map_err(|e| Error::io("sending a signal")(e.into()))
}

/// Names in the folders where something could be left.
pub(crate) fn files() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for dir in ["/dev/shm", "/tmp", "/run"] {
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))?.flatten() {
            names.insert(entry.path().display().to_string());
        }
    }
    Ok(names)
}
