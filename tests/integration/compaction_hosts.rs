// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compaction on hosts that lack features, and with every kind of memory.

use std::fs;
use std::process::Command;

use harness::confine::{MemoryGroup, old_kernel, without_huge_pages};
use harness::guest::Guest;
use harness::monitor::{Monitor, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};
use serde_json::{Value, json};

use crate::compaction::{balloon_by_pages, compact, fragment_stock, number, resident, stock};

const MIB: u64 = 1 << 20;
const HUGE_POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Boots a guest in a modified process.
fn boot_confined(
    context: &Context,
    spec: Spec,
    confine: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<Guest> {
    let monitor = Monitor::start_confined(&context.ballast(), &spec, &context.logs, confine)?;
    Guest::attach(monitor, spec)
}

/// A host without free huge pages: this is reported, and nothing is lost.
pub(crate) fn hosts_without_huge_pages(context: &Context) -> Result<()> {
    let spec = Spec::new(&context.payload, 128);
    let mut guest = boot_confined(context, spec, without_huge_pages)?;
    guest.touch_everything()?;
    guest.agent.command("fill kept 40M")?;
    let report = compact(&mut guest, &json!({}))?;
    println!("no huge pages allowed: {report}");
    check_eq!(number(&report, "/collapse/done")?, 0);
    check!(number(&report, "/collapse/refused")? > 0, "{report}");
    check_eq!(number(&report, "/after/huge_bytes")?, 0);
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// The control group may have no more memory: that is reported, nothing is lost, and without the
/// limit the pass succeeds.
pub(crate) fn a_limit_on_memory(context: &Context) -> Result<()> {
    let group = MemoryGroup::new("ballast-test-limit")?;
    let mut guest = boot_confined(context, stock(context), |command| group.admit(command))?;
    fragment_stock(&mut guest)?;
    // Room for some pages, for none that is huge.
    group.limit(Some(group.used()? + MIB))?;
    let report = compact(&mut guest, &json!({}))?;
    println!("the limit is reached: {report}");
    check_eq!(number(&report, "/collapse/done")?, 0);
    check!(number(&report, "/collapse/refused")? > 0, "{report}");
    guest.agent.verify("verify kept")?;
    group.limit(None)?;
    let report = compact(&mut guest, &json!({}))?;
    println!("without a limit: {report}");
    check!(number(&report, "/collapse/done")? > 0, "{report}");
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Kernels without PAGEMAP_SCAN and MADV_COLLAPSE: the balloon and passes work as far as possible.
pub(crate) fn works_on_kernels_without_newer_calls(context: &Context) -> Result<()> {
    for errno in [libc::ENOSYS, libc::EINVAL] {
        let spec = Spec::new(&context.payload, 128);
        let mut guest = boot_confined(context, spec, |command| old_kernel(command, errno))?;
        guest.touch_everything()?;
        guest.agent.command("fill kept 24M")?;
        balloon_by_pages(&mut guest, 5)?;
        guest.balloon_to(40)?;
        let memory = guest.monitor.api().get("/memory")?;
        check_eq!(memory["huge_bytes"], Value::Null);
        let told = number(&memory, "/resident_bytes")?;
        let (rss, _) = resident(&guest)?;
        check!(told.abs_diff(rss) < 8 * MIB, "{told} bytes resident are {rss}");
        let report = compact(&mut guest, &json!({}))?;
        println!("errno {errno}: {report}");
        check_eq!(report["end"], json!("finished"));
        check_eq!(number(&report, "/collapse/done")?, 0);
        guest.agent.verify("verify kept")?;
        guest.balloon_to(0)?;
        guest.agent.verify("verify kept")?;
        check_eq!(guest.power_off()?.code(), Some(0));
    }
    Ok(())
}

/// A memfd, small pages, and huge pages of the pool: each boots, gives memory back, and has passes
/// run over it without loss.
pub(crate) fn every_kind_of_memory(context: &Context) -> Result<()> {
    const MEMORY_MIB: u64 = 192;
    fs::write(HUGE_POOL, (MEMORY_MIB / 2 + 4).to_string()).map_err(Error::io(HUGE_POOL))?;
    for backing in ["memfd", "small", "hugetlb-2m"] {
        let mut spec = Spec::new(&context.payload, MEMORY_MIB);
        spec.more.insert("memory".into(), json!({ "backing": backing }));
        let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
        guest.touch_everything()?;
        guest.agent.command("fill kept 32M")?;
        // The pool's pages are free there, not in the host's free memory.
        let free = || -> Result<u64> {
            let pool = host::meminfo()?.get("HugePages_Free").copied().unwrap_or(0) * 2 * MIB;
            Ok(host::settled_free()? + pool)
        };
        let before = free()?;
        guest.balloon_to(100)?;
        let gained = free()?.saturating_sub(before);
        let report = compact(&mut guest, &json!({}))?;
        println!("{backing}: gained {} MiB; {report}", gained / MIB);
        check!(gained >= 95 * MIB, "{backing}: {} of 100 MiB came back", gained / MIB);
        check_eq!(report["end"], json!("finished"));
        let huge = number(&report, "/after/huge_bytes")?;
        let rss = number(&report, "/after/resident_bytes")?;
        match backing {
            "small" => check_eq!(huge, 0),
            "hugetlb-2m" => check_eq!(huge, rss),
            _ => {}
        }
        guest.agent.verify("verify kept")?;
        guest.balloon_to(0)?;
        guest.agent.command("fill again 64M")?;
        guest.agent.verify("verify again")?;
        guest.agent.verify("verify kept")?;
        check_eq!(guest.power_off()?.code(), Some(0));
    }
    fs::write(HUGE_POOL, "0").map_err(Error::io(HUGE_POOL))
}

/// Guest memory in one page of 1 GiB: all of it is huge, no part of it can be freed, and the report
/// says so.
pub(crate) fn a_gigantic_page(context: &Context) -> Result<()> {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
    const GIB: u64 = 1 << 30;
    let pool = |file: &str| -> Result<String> {
        let path = format!("{POOL}/{file}");
        Ok(fs::read_to_string(&path).map_err(Error::io(path))?.trim().to_owned())
    };
    let all = format!("{POOL}/nr_hugepages");
    fs::write(&all, "1").map_err(Error::io(&all))?;
    check_eq!(pool("free_hugepages")?, "1");
    let mut spec = Spec::new(&context.payload, 1024);
    spec.more.insert("memory".into(), json!({ "backing": "hugetlb-1g" }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    check_eq!(pool("free_hugepages")?, "0");
    guest.agent.command("fill kept 64M")?;
    guest.balloon_to(100)?;
    check_eq!(guest.balloon_counter("inflation/freed")?, 0);
    check!(guest.balloon_counter("inflation/held")? >= 100 * MIB, "nothing is reported as held");
    let report = compact(&mut guest, &json!({}))?;
    println!("{report}");
    check_eq!(report["end"], json!("finished"));
    check_eq!(number(&report, "/after/resident_bytes")?, GIB);
    check_eq!(number(&report, "/after/huge_bytes")?, GIB);
    guest.agent.verify("verify kept")?;
    guest.balloon_to(0)?;
    guest.agent.command("fill again 128M")?;
    guest.agent.verify("verify again")?;
    guest.agent.verify("verify kept")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    check_eq!(pool("free_hugepages")?, "1");
    fs::write(&all, "0").map_err(Error::io(&all))
}
