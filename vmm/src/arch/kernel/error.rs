// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a kernel or an initrd cannot be loaded.

use std::io;
use std::path::PathBuf;

use linux_loader::loader;

/// Why there is no kernel to run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Neither of the formats we know.
    #[error(
        "kernel {} is {what}: give an ELF vmlinux or a bzImage for x86-64", path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// Its headers name more than there is.
    #[error(
        "kernel {} is cut off: it has {has} bytes, and its headers name {named}: copy it again",
        path.display()
    )]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Bytes of the file.
        has: u64,
        /// Bytes that it should have at least.
        named: u64,
    },
    /// It would be overwritten by what it is started with.
    #[error(
        "kernel {} has a segment at {at:#x}, where boot structures go: link it to 1 MiB or above",
        path.display()
    )]
    TooLow {
        /// The file.
        path: PathBuf,
        /// Where the lowest segment begins.
        at: u64,
    },
    /// A bzImage from before Linux 3.8, or a 32-bit one.
    #[error("kernel {} has no 64-bit entry point", .0.display())]
    No64BitEntry(PathBuf),
    /// It is broken, or does not fit in guest memory.
    #[error(
        "cannot load kernel {} ({source}): give a kernel of Linux, whose segments and entry \
         point lie between 1 MiB and the end of the guest's memory", path.display()
    )]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: loader::Error,
    },
    /// Its headers lead the CPU, or it unpacks itself, to where no kernel can be.
    #[error(
        "kernel {} has entry point {rip:#x} and end {end:#x}: both must lie in memory between 1 \
         MiB and 3 GiB", path.display()
    )]
    Outside {
        /// The file.
        path: PathBuf,
        /// First instruction.
        rip: u64,
        /// First address that it leaves free while it starts.
        end: u64,
    },
    /// It would run out of memory before its first line of output.
    #[error(
        "kernel {} needs {needed_mib} MiB of memory to start, but the guest has {has_mib} MiB: \
         give it more", path.display()
    )]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// Minimum memory in MiB, without an initrd and the guest's workload.
        needed_mib: u64,
        /// MiB of low RAM.
        has_mib: u64,
    },
    /// No initrd may be empty: a kernel would ignore it in silence.
    #[error("initrd {} is empty", .0.display())]
    EmptyInitrd(PathBuf),
    /// Between the kernel and the end of low RAM there is too little room.
    #[error("initrd {} of {len} bytes does not fit in the {room} bytes of free low memory", path.display())]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// Room between the kernel and the end of low RAM.
        room: u64,
    },
}
