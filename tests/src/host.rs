// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's own view of its memory. Returned memory is measured by the host's free memory: a
//! process's resident size also falls if nothing was freed (a huge page that is only split in the
//! page table stays allocated).

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use crate::{Error, Result};

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// `/proc/meminfo`, in bytes.
pub fn meminfo() -> Result<HashMap<String, u64>> {
    Ok(parse_meminfo(&read("/proc/meminfo")?))
}

/// Parses the text of a `/proc/meminfo`, to bytes.
#[must_use]
pub fn parse_meminfo(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let mut words = value.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            Some((key.trim().to_owned(), number * unit))
        })
        .collect()
}

/// The host's free memory in bytes: `MemFree`, and what lies free in each CPU's own lists, where
/// freed huge pages rest for a while too.
pub fn free() -> Result<u64> {
    let listed = parse_zoneinfo_lists(&read("/proc/zoneinfo")?) * PAGE;
    Ok(meminfo()?.get("MemFree").copied().unwrap_or(0) + listed)
}

/// [`free`], once it has stopped changing.
pub fn settled_free() -> Result<u64> {
    let mut last = 0;
    for _ in 0..50 {
        let free = free()?;
        if free.abs_diff(last) < 256 << 10 {
            return Ok(free);
        }
        last = free;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(last)
}

/// Pages in the CPUs' own free lists, of the text of a `/proc/zoneinfo`.
fn parse_zoneinfo_lists(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("count:")?.trim().parse::<u64>().ok())
        .sum()
}

/// Free memory by order, all zones together: `[0]` is the number of free single pages.
pub fn buddyinfo() -> Result<Vec<u64>> {
    Ok(parse_buddyinfo(&read("/proc/buddyinfo")?))
}

/// Parses the text of a `/proc/buddyinfo`.
#[must_use]
pub fn parse_buddyinfo(text: &str) -> Vec<u64> {
    let mut sums = Vec::new();
    for line in text.lines() {
        // "Node 0, zone   Normal      1      0 ..."
        let counts = line.split_whitespace().skip(4).filter_map(|word| word.parse::<u64>().ok());
        for (order, count) in counts.enumerate() {
            if sums.len() <= order {
                sums.push(0);
            }
            sums[order] += count;
        }
    }
    sums
}

/// Bytes of free memory that lie in free blocks of 2 MiB or more.
pub fn free_in_blocks() -> Result<u64> {
    Ok(buddyinfo()?.iter().enumerate().skip(9).map(|(order, count)| (count << order) * PAGE).sum())
}

/// Sums of a process's mappings, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Resident.
    pub rss: u64,
    /// Resident, anonymous.
    pub anonymous: u64,
    /// Anonymous, in huge pages.
    pub huge: u64,
}

/// Sums of the mappings of process `pid` that are at least `at_least` bytes long (guest memory),
/// and of those that are shorter (the monitor's own).
pub fn mappings(pid: u32, at_least: u64) -> Result<(Mappings, Mappings)> {
    let text = read(&format!("/proc/{pid}/smaps"))?;
    Ok(parse_smaps(&text, at_least))
}

fn parse_smaps(text: &str, at_least: u64) -> (Mappings, Mappings) {
    let (mut guest, mut own) = (Mappings::default(), Mappings::default());
    let mut large = false;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim().trim_end_matches(" kB").parse::<u64>().map(|kib| kib * 1024);
        // The first line of a mapping has a colon too, in its device number.
        let Ok(value) = value else { continue };
        let sums = if large { &mut guest } else { &mut own };
        match key {
            "Size" => large = value >= at_least,
            "Rss" => sums.rss += value,
            "Anonymous" => sums.anonymous += value,
            "AnonHugePages" => sums.huge += value,
            _ => {}
        }
    }
    (guest, own)
}

/// Exits of all vCPUs of this machine since KVM was loaded.
pub fn kvm_exits() -> Result<u64> {
    kvm_count("exits")
}

/// Exits to monitors for a register or a port, of all guests: those that KVM could not serve itself.
pub fn monitor_exits() -> Result<u64> {
    Ok(kvm_count("mmio_exits")? + kvm_count("io_exits")?)
}

fn kvm_count(name: &str) -> Result<u64> {
    read_number(&format!("/sys/kernel/debug/kvm/{name}"))
}

fn read_number(path: &str) -> Result<u64> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| Error::Check(format!("{path} is not a number: {text}")))
}

/// CPU time that all threads of process `pid` took, less what its guest ran: the monitor's work, and
/// the kernel's for it. It is counted in hundredths of a second.
pub fn cpu_outside_guest(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    parse_cpu_outside_guest(&text).ok_or_else(|| Error::Check(format!("{path}: {text}")))
}

/// Of proc_pid_stat(5): utime (14) and stime (15) less guest_time (43), which is part of the first.
fn parse_cpu_outside_guest(text: &str) -> Option<Duration> {
    let field = |number| stat_field(text, number);
    let ticks = (field(14)? + field(15)?).saturating_sub(field(43)?);
    // USER_HZ is 100 on x86.
    Some(Duration::from_millis(ticks * 10))
}

/// Time that the CPUs of this machine had nothing to do, all together. It is counted in hundredths
/// of a second.
pub fn idle() -> Result<Duration> {
    let path = "/proc/stat";
    let text = read(path)?;
    parse_idle(&text).ok_or_else(|| Error::Check(format!("{path}: {text}")))
}

/// Of proc_stat(5), first line: idle (4) and iowait (5).
fn parse_idle(text: &str) -> Option<Duration> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

/// Frames over the interface `name`: those that this machine received, and those that it sent.
pub fn frames(name: &str) -> Result<(u64, u64)> {
    let count =
        |which: &str| read_number(&format!("/sys/class/net/{name}/statistics/{which}_packets"));
    Ok((count("rx")?, count("tx")?))
}

/// Page faults of all threads of process `pid` that needed no I/O.
pub fn minor_faults(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    stat_field(&text, 10).ok_or_else(|| Error::Check(format!("{path}: {text}")))
}

/// A numeric field of proc_pid_stat(5), by its number there.
fn stat_field(text: &str, number: usize) -> Option<u64> {
    // The name may have spaces and brackets; the field behind it is the third.
    text.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Processes whose executable has this name.
pub fn processes_named(name: &str) -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").map_err(Error::io("reading /proc"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.file_name().is_some_and(|file| file == name))
        })
        .collect())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_bytes() {
        let parsed = parse_meminfo("MemFree:     2048 kB\nHugePages_Total:       3\n");
        assert_eq!(parsed["MemFree"], 2 << 20);
        assert_eq!(parsed["HugePages_Total"], 3);
    }

    #[test]
    fn waiting_for_a_disk_is_idle_time_too() {
        let text = "cpu  8 0 9 120 3 0 1 0 0 0\ncpu0 8 0 9 120 3 0 1 0 0 0\n";
        assert_eq!(parse_idle(text), Some(Duration::from_millis(1230)));
    }

    #[test]
    fn cpu_time_leaves_out_what_the_guest_ran() {
        let mut fields = vec!["0"; 52];
        (fields[2], fields[13], fields[14], fields[42]) = ("S", "500", "70", "450");
        let text = format!("7 (a ) b) {}", fields[2..].join(" "));
        assert_eq!(parse_cpu_outside_guest(&text), Some(Duration::from_millis(1200)));
    }

    #[test]
    fn zoneinfo_has_each_cpus_lists() {
        let text = "Node 0, zone   Normal\n  pages free     7\n  pagesets\n    cpu: 0\n\
                    \x20             count:    512\n              high:     14\n    cpu: 1\n\
                    \x20             count:    3\n";
        assert_eq!(parse_zoneinfo_lists(text), 515);
    }

    #[test]
    fn buddyinfo_sums_zones() {
        let text = "Node 0, zone      DMA      1      0      2\n\
                    Node 0, zone   Normal     10     20     30\n";
        assert_eq!(parse_buddyinfo(text), [11, 20, 32]);
    }

    #[test]
    fn smaps_tells_guest_memory_from_the_rest() {
        let text = "7f00-8000 rw-p 00000000 00:00 0 \n\
                    Size:             524288 kB\n\
                    Rss:              100 kB\n\
                    Anonymous:        90 kB\n\
                    AnonHugePages:    80 kB\n\
                    VmFlags: rd wr\n\
                    9000-a000 r-xp 00000000 fd:01 12 /bin/x\n\
                    Size:             8 kB\n\
                    Rss:              7 kB\n\
                    Anonymous:        6 kB\n";
        let (guest, own) = parse_smaps(text, 1 << 20);
        let kib = |rss: u64, anonymous: u64, huge: u64| Mappings {
            rss: rss << 10,
            anonymous: anonymous << 10,
            huge: huge << 10,
        };
        assert_eq!(guest, kib(100, 90, 80));
        assert_eq!(own, kib(7, 6, 0));
    }
}
