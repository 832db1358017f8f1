// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast check`: whether this host can run machines, how well, and what to do about it.
//!
//! Every kernel call is tried, not guessed from a version: distributions move features about.

use std::fmt;
use std::fs;
use std::io::Write;

use devices::net::VhostNet;
use mm::sys::mapping::{Mapping, MappingSource};
use mm::sys::pagemap::Pagemap;
use mm::sys::userfault::Userfault;
use rustix::io::Errno;

use super::error::CliError;
use crate::kvm;

/// Prints every finding; an error if machines cannot run here.
pub(super) fn run(out: &mut impl Write) -> Result<(), CliError> {
    let findings = [
        kvm_device(),
        cpu(),
        transparent_huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        hugetlb("2 MiB", "hugepages-2048kB"),
        hugetlb("1 GiB", "hugepages-1048576kB"),
        pagemap_scan(),
        userfaultfd(),
        collapse(),
        vhost_net(),
    ];
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    let able = findings.iter().all(|finding| finding.verdict != Verdict::Fails);
    if able { Ok(()) } else { Err(CliError::NotAble) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Fine,
    /// Machines run, but something does not, or not as well.
    Lacks,
    /// No machine runs.
    Fails,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    what: &'static str,
    says: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Fine => "ok   ",
            Verdict::Lacks => "lacks",
            Verdict::Fails => "FAILS",
        };
        write!(out, "{verdict}  {:<14}{}", self.what, self.says)
    }
}

fn finding(verdict: Verdict, what: &'static str, says: impl Into<String>) -> Finding {
    Finding { verdict, what, says: says.into() }
}

/// The contents of a kernel file; empty if it does not exist.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn kvm_device() -> Finding {
    match kvm::open() {
        Ok(_) => finding(Verdict::Fine, "KVM", "/dev/kvm works and has every required capability"),
        Err(error) => finding(Verdict::Fails, "KVM", error.to_string()),
    }
}

fn cpu() -> Finding {
    if kvm::cpu_virtualizes() {
        finding(Verdict::Fine, "CPU", "virtualizes (vmx or svm)")
    } else {
        finding(
            Verdict::Lacks,
            "CPU",
            "has neither vmx nor svm: a /dev/kvm here is a software emulation, on which stock \
             Linux guests may die with KVM_EXIT_INTERNAL_ERROR; use a host with hardware \
             virtualization, or an emulated machine that has it (qemu -cpu EPYC,+svm,+npt)",
        )
    }
}

/// `enabled` reads like `always [madvise] never`.
fn transparent_huge_pages(enabled: &str) -> Finding {
    let what = "huge pages";
    let chosen = enabled
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')));
    match chosen {
        Some(mode @ ("always" | "madvise")) => {
            finding(Verdict::Fine, what, format!("transparent, {mode}: used for guest memory"))
        }
        Some(mode) => finding(
            Verdict::Lacks,
            what,
            format!(
                "transparent, {mode}: guest memory stays in small pages; \
                 echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
            ),
        ),
        None => finding(
            Verdict::Lacks,
            what,
            "the kernel lacks transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE)",
        ),
    }
}

fn hugetlb(size: &str, folder: &str) -> Finding {
    let what = "hugetlbfs";
    let number = |file: &str| {
        let text = read(&format!("/sys/kernel/mm/hugepages/{folder}/{file}"));
        text.trim().parse::<u64>().ok()
    };
    match (number("nr_hugepages"), number("free_hugepages")) {
        (Some(0), _) => finding(
            Verdict::Fine,
            what,
            format!(
                "no pages of {size} reserved: only backing=hugetlb needs them \
                 (echo N > /sys/kernel/mm/hugepages/{folder}/nr_hugepages)"
            ),
        ),
        (Some(all), Some(free)) => {
            finding(Verdict::Fine, what, format!("{all} pages of {size} reserved, {free} free"))
        }
        _ => finding(
            Verdict::Lacks,
            what,
            format!("pages of {size} are not supported by the CPU or the kernel"),
        ),
    }
}

fn pagemap_scan() -> Finding {
    let what = "PAGEMAP_SCAN";
    let tried =
        Mapping::new(MappingSource::Anonymous, mm::units::PAGE_BYTES, mm::units::PAGE_BYTES)
            .and_then(|page| {
                page.populate(page.range())?;
                let pagemap = Pagemap::open()?;
                pagemap.walk(page.range(), |_, _| {})?;
                Ok(pagemap.can_scan())
            });
    match tried {
        Ok(true) => finding(Verdict::Fine, what, "works: block maps are cheap"),
        Ok(false) => finding(
            Verdict::Lacks,
            what,
            "not in this kernel (needs Linux 6.7): block maps are read page by page and do not \
             show huge pages",
        ),
        Err(error) => finding(Verdict::Lacks, what, format!("/proc/self/pagemap: {error}")),
    }
}

fn userfaultfd() -> Finding {
    let what = "userfaultfd";
    match Userfault::open() {
        Ok(_) => finding(Verdict::Fine, what, "works and moves pages: memory can be parked"),
        Err(error) => finding(Verdict::Lacks, what, format!("memory cannot be parked: {error}")),
    }
}

fn collapse() -> Finding {
    let what = "MADV_COLLAPSE";
    const BLOCK: usize = 2 << 20;
    let tried = Mapping::new(MappingSource::Anonymous, BLOCK, BLOCK).and_then(|block| {
        block.populate(block.range())?;
        block.collapse(block.range())
    });
    match tried {
        Ok(()) => finding(Verdict::Fine, what, "works: scattered pages can be made huge"),
        // The kernel supports the call but had no free huge page.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOMEM | Errno::AGAIN | Errno::BUSY)
            ) =>
        {
            finding(
                Verdict::Fine,
                what,
                "works, but the host has no free huge page now (echo 1 > \
                 /proc/sys/vm/compact_memory)",
            )
        }
        Err(error) => finding(
            Verdict::Lacks,
            what,
            format!("does not work (needs Linux 6.1 with transparent huge pages): {error}"),
        ),
    }
}

fn vhost_net() -> Finding {
    let what = "vhost-net";
    match VhostNet::probe() {
        Ok(()) => {
            finding(Verdict::Fine, what, "works: vhost=on of a network interface can be used")
        }
        Err(error) => finding(
            Verdict::Lacks,
            what,
            format!("{error}; network interfaces without vhost=on do not need it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_transparent_huge_pages() {
        let verdict = |text| transparent_huge_pages(text).verdict;
        assert_eq!(verdict("[always] madvise never\n"), Verdict::Fine);
        assert_eq!(verdict("always [madvise] never\n"), Verdict::Fine);
        assert_eq!(verdict("always madvise [never]\n"), Verdict::Lacks);
        assert_eq!(verdict(""), Verdict::Lacks);
        assert!(transparent_huge_pages("always madvise [never]").says.contains("echo madvise"));
    }

    /// On any host, every line has a verdict, and the end agrees with the lines.
    #[test]
    fn the_end_agrees_with_the_lines() {
        let mut out = Vec::new();
        let able = run(&mut out).is_ok();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 9, "{text}");
        for line in text.lines() {
            let verdict = line.split_whitespace().next().unwrap();
            assert!(["ok", "lacks", "FAILS"].contains(&verdict), "{line}");
        }
        assert_eq!(able, !text.contains("FAILS"), "{text}");
    }
}
