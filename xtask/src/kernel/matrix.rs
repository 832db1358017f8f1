// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask kernel-matrix`: the files that the series touches, compiled in configurations that
//! no test here runs, with the kernel's additional warnings (W=1). Modules may use exported symbols
//! only. Done once for each version of sources, series and matrix; the cache remembers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::build::make;
use super::{Options, Series, Source};
use crate::error::{IoContext, Result, task_error};
use crate::lock::FileLock;
use crate::{paths, run};

/// A configuration: its name, and what it changes of guest-kernel/configs/base.config.
struct Variant {
    name: &'static str,
    set: &'static [&'static str],
    unset: &'static [&'static str],
}

const fn variant(
    name: &'static str,
    set: &'static [&'static str],
    unset: &'static [&'static str],
) -> Variant {
    Variant { name, set, unset }
}

/// Each takes something away that the series uses, or builds it in another way.
const VARIANTS: [Variant; 11] = [
    variant("base", &[], &[]),
    variant(
        "modules",
        &["MODULES=y", "DRM=m", "DRM_VIRTIO_GPU=m", "VIRTIO_BALLOON=m", "ZSMALLOC=y"],
        &[],
    ),
    variant(
        "no-migration",
        &[],
        &[
            "MIGRATION",
            "COMPACTION",
            "CMA",
            "DMA_CMA",
            "BALLOON_COMPACTION",
            "TRANSPARENT_HUGEPAGE",
            "CONTIG_ALLOC",
            "NUMA_BALANCING",
        ],
    ),
    variant("no-events", &[], &["VM_EVENT_COUNTERS"]),
    variant(
        "no-contig",
        &[],
        &["CMA", "DMA_CMA", "CONTIG_ALLOC", "MEMORY_ISOLATION", "VIRTIO_MEM"],
    ),
    variant("no-cma", &["MEMORY_HOTPLUG=y", "MEMORY_HOTREMOVE=y"], &["CMA", "DMA_CMA"]),
    variant("no-balloon-compaction", &[], &["BALLOON_COMPACTION"]),
    variant("no-compaction", &[], &["COMPACTION", "BALLOON_COMPACTION", "TRANSPARENT_HUGEPAGE"]),
    variant("no-memcg", &[], &["MEMCG"]),
    variant("kunit", &["KUNIT=y", "DRM_VIRTIO_GPU_KUNIT_TEST=y"], &[]),
    variant("hotplug", &["MEMORY_HOTPLUG=y", "MEMORY_HOTREMOVE=y"], &[]),
];

/// Objects that exist only with a symbol, by the ends of their paths.
const CONDITIONS: [(&str, &str); 11] = [
    ("mm/cma.o", "CMA"),
    ("mm/compaction.o", "COMPACTION"),
    ("mm/migrate.o", "MIGRATION"),
    ("mm/memcontrol.o", "MEMCG"),
    ("mm/balloon_compaction.o", "MEMORY_BALLOON"),
    ("mm/zsmalloc.o", "ZSMALLOC"),
    ("mm/page_isolation.o", "MEMORY_ISOLATION"),
    ("mm/vmstat.o", "PROC_FS"),
    ("fs/proc/kcore.o", "PROC_KCORE"),
    ("kernel/power/snapshot.o", "HIBERNATION"),
    ("drivers/gpu/drm/virtio/virtgpu_debugfs.o", "DEBUG_FS"),
];

/// Compiles all variants unless that was done already.
pub(crate) fn check(options: &Options) -> Result<()> {
    let source = Source::find(options.source.as_deref())?;
    let folder = paths::workspace().join("guest-kernel");
    let series = Series::read(&folder)?;
    let base = folder.join("configs/base.config");
    let config = fs::read_to_string(&base).doing("reading", &base)?;
    let objects = touched(&series);

    let mut hash = Sha256::new();
    for part in [source.identity(), &series.identity(), &config, include_str!("matrix.rs")] {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let cache = paths::cache()?.join("kernel");
    fs::create_dir_all(&cache).doing("creating", &cache)?;
    let done = cache.join(format!("matrix-{digest}.ok"));
    let _lock = FileLock::acquire(&cache.join("matrix.lock"))?;
    if done.is_file() {
        eprintln!("kernel matrix: {} configurations were compiled already", VARIANTS.len());
        return Ok(());
    }

    let work = tempfile::Builder::new()
        .prefix("matrix-")
        .tempdir_in(&cache)
        .doing("creating a folder in", &cache)?;
    let tree = work.path().join("linux");
    series.apply_to_copy(source.tree(), &tree, source.version())?;
    let build = work.path().join("objects");
    fs::create_dir(&build).doing("creating", &build)?;
    let exported = exported_symbols(&tree)?;
    let mut faults = Vec::new();
    for variant in &VARIANTS {
        eprintln!("  kernel matrix: {}", variant.name);
        if let Err(error) = compile(&tree, &build, &base, variant, &objects, &exported) {
            faults.push(format!("{}: {error}", variant.name));
        }
    }
    if !faults.is_empty() {
        return task_error(faults.join("\n"));
    }
    fs::write(&done, "").doing("writing", &done)
}

/// The objects of the C files that the patches touch.
fn touched(series: &Series) -> BTreeSet<String> {
    let identity = series.identity();
    identity
        .lines()
        .filter_map(|line| line.strip_prefix("+++ b/")?.strip_suffix(".c"))
        .filter(|path| !path.starts_with("tools/") && !path.starts_with("Documentation/"))
        // Tests of static functions are included by the file that they test.
        .filter(|path| !path.ends_with("_kunit"))
        .map(|path| format!("{path}.o"))
        .collect()
}

fn compile(
    tree: &Path,
    build: &Path,
    base: &Path,
    variant: &Variant,
    objects: &BTreeSet<String>,
    exported: &BTreeSet<String>,
) -> Result<()> {
    let fragment = build.join("variant.config");
    let mut text = String::new();
    for symbol in variant.set {
        text += &format!("CONFIG_{symbol}\n");
    }
    for symbol in variant.unset {
        text += &format!("# CONFIG_{symbol} is not set\n");
    }
    fs::write(&fragment, text).doing("writing", &fragment)?;
    run::quiet(make(tree, build).arg("tinyconfig"))?;
    run::quiet(
        Command::new(tree.join("scripts/kconfig/merge_config.sh"))
            .args(["-m", "-O"])
            .arg(build)
            .arg(build.join(".config"))
            .arg(base)
            .arg(&fragment)
            .current_dir(tree),
    )?;
    run::quiet(make(tree, build).arg("olddefconfig"))?;
    let taken = build.join(".config");
    let taken = fs::read_to_string(&taken).doing("reading", &taken)?;
    took(variant, &taken)?;

    let is_on = |symbol: &str| {
        ["y", "m"]
            .iter()
            .any(|value| taken.lines().any(|l| l == format!("CONFIG_{symbol}={value}")))
    };
    let condition = |object: &str| CONDITIONS.iter().find(|(end, _)| object.ends_with(end));
    let wanted: Vec<&String> = objects
        .iter()
        .filter(|object| condition(object).is_none_or(|(_, symbol)| is_on(symbol)))
        .collect();
    let mut command = make(tree, build);
    command.args(["W=1", "--keep-going"]).args(&wanted);
    if run::in_path("sparse") {
        command.arg("C=1");
    }
    let said = run::capture_all(&mut command)?;
    let warnings: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("warning:") && !is_of_stock(line))
        .filter(|line| objects.iter().any(|object| names(line, object)))
        .collect();
    if !warnings.is_empty() {
        return task_error(warnings.join("\n"));
    }
    modules_link(build, variant, &wanted, exported)
}

/// What sparse says of the kernel's own files, too: it cannot follow locks through conditions, and
/// the compiler looks for missing prototypes already.
fn is_of_stock(line: &str) -> bool {
    line.contains("context imbalance") || line.contains("was not declared. Should it be static?")
}

/// Whether a line of the compiler is about that object's source.
fn names(line: &str, object: &str) -> bool {
    object.strip_suffix(".o").is_some_and(|stem| line.contains(&format!("{stem}.c:")))
}

/// A variant that Kconfig does not take would test nothing.
fn took(variant: &Variant, config: &str) -> Result<()> {
    let has = |line: String| config.lines().any(|l| l == line);
    for symbol in variant.set {
        if !has(format!("CONFIG_{symbol}")) {
            return task_error(format!("CONFIG_{symbol} was not taken"));
        }
    }
    // The first is what the variant is about; others may be what it depends on.
    if let Some(symbol) = variant.unset.first()
        && (has(format!("CONFIG_{symbol}=y")) || has(format!("CONFIG_{symbol}=m")))
    {
        return task_error(format!("CONFIG_{symbol} is still set: something selects it"));
    }
    Ok(())
}

/// What the objects of modules use of the rest of the kernel must be exported there.
fn modules_link(
    build: &Path,
    variant: &Variant,
    objects: &[&String],
    exported: &BTreeSet<String>,
) -> Result<()> {
    let mut modules: Vec<&str> = Vec::new();
    if variant.set.contains(&"DRM_VIRTIO_GPU=m") {
        modules.push("drivers/gpu/drm/virtio/");
    }
    if variant.set.contains(&"VIRTIO_BALLOON=m") {
        modules.push("drivers/virtio/virtio_balloon");
    }
    let mut missing = Vec::new();
    for module in modules {
        let files: Vec<PathBuf> =
            objects.iter().filter(|o| o.starts_with(module)).map(|o| build.join(o)).collect();
        let symbols = run::capture(Command::new("nm").args(&files))?;
        let (mut defined, mut used) = (BTreeSet::new(), BTreeSet::new());
        for line in symbols.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["U", name] => {
                    used.insert(name);
                }
                [_, _, name] => {
                    defined.insert(name);
                }
                _ => {}
            }
        }
        // Of files that the series does not touch.
        let own =
            |name: &str| base_name(name).starts_with("virtio_gpu") || name.starts_with("virtgpu");
        let unknown = used.difference(&defined).filter(|name| {
            !own(name) && !is_made_elsewhere(name) && !exported.contains(base_name(name))
        });
        missing.extend(unknown.map(|name| format!("{module} uses {name}, which is not exported")));
    }
    if missing.is_empty() { Ok(()) } else { task_error(missing.join("\n")) }
}

/// Symbols of the compiler's making, and those that the kernel exports by macros of their own.
fn is_made_elsewhere(name: &str) -> bool {
    const PREFIXES: [&str; 7] =
        ["__x86_", "__fentry__", "__stack_chk", "mem", "__this_module", "_dev_", "param_ops_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name == "_GLOBAL_OFFSET_TABLE_"
}

/// A tracepoint, a static call or a section of a name is exported with the name.
fn base_name(name: &str) -> &str {
    const PREFIXES: [&str; 5] =
        ["__tracepoint_", "__traceiter_", "__SCT__tp_func_", "__SCK__tp_func_", "__SCT__"];
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Every name that some `EXPORT_SYMBOL` of the tree has.
fn exported_symbols(tree: &Path) -> Result<BTreeSet<String>> {
    let found = run::capture(
        Command::new("grep")
            .args(["-rhoE", "--include=*.c", "--include=*.S", "--include=*.h"])
            .arg(r"EXPORT_[A-Z_]*(SYMBOL|CALL)[A-Z_]*\(\s*\w+")
            .args(["mm", "lib", "kernel", "drivers/base", "drivers/gpu/drm", "drivers/virtio"])
            .args(["drivers/dma-buf", "drivers/video", "drivers/firmware", "drivers/pci"])
            .args(["drivers/char", "drivers/acpi", "fs", "arch/x86", "block", "security", "init"])
            .current_dir(tree),
    )?;
    Ok(found
        .lines()
        .filter_map(|line| line.split_once('('))
        .map(|(_, name)| name.trim().to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_about_the_file_they_name() {
        let object = "mm/cma.o";
        assert!(names("../linux/mm/cma.c:12:3: warning: unused variable", object));
        assert!(!names("../linux/mm/cma_debug.c:12:3: warning: unused variable", object));
    }

    #[test]
    fn a_variant_that_was_not_taken_is_an_error() {
        let wanted = variant("x", &["MODULES=y"], &["MIGRATION"]);
        assert!(took(&wanted, "CONFIG_MODULES=y\n# CONFIG_MIGRATION is not set\n").is_ok());
        assert!(took(&wanted, "CONFIG_MODULES=y\nCONFIG_MIGRATION=y\n").is_err());
        assert!(took(&wanted, "# CONFIG_MODULES is not set\n").is_err());
    }

    #[test]
    fn a_function_of_the_kernel_must_be_exported() {
        assert!(!is_made_elsewhere("PageMovable"));
        assert!(is_made_elsewhere("_dev_warn") && is_made_elsewhere("memcpy"));
    }

    #[test]
    fn tracepoints_are_exported_with_their_name() {
        assert_eq!(base_name("__SCT__tp_func_dma_fence_emit"), "dma_fence_emit");
        assert_eq!(base_name("kfree"), "kfree");
    }
}
