// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor's own memory, without guest memory. Start-up needs more than the rest of the run: it
//! parses arguments and a configuration, and builds tables and devices. Memory that is not needed
//! again is returned to the host.

use std::ffi::{c_int, c_void};
use std::ptr;

use rustix::mm::{Advice, madvise};

/// Bytes of a page.
const PAGE: usize = 4096;
/// How far below the stack pointer start-up may have been. Linux keeps four times as much below a
/// stack free of other mappings.
const STACK_DEPTH: usize = 256 << 10;
/// Margin below the stack pointer: the frame of the one system call that is made, and the red zone.
const STACK_MARGIN: usize = PAGE;

/// Makes all threads allocate from one arena: each further arena would keep memory, and no thread
/// allocates often enough for contention.
pub(crate) fn use_one_arena() {
    // SAFETY: sets a parameter of the allocator; the process has one thread so far.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns memory used by start-up to the host. Called on the main thread once the machine runs.
/// Pages that are used again are loaded by page faults, code from the file.
pub(crate) fn give_back_start_up() {
    // SAFETY: has no preconditions; it releases only pages that hold no allocation.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback has the type that is asked for, and takes no data.
    unsafe {
        libc::dl_iterate_phdr(Some(forget_unwritable), ptr::null_mut());
    }
    forget_below_stack();
}

/// Removes code and constants of the program from this process's page tables; they stay in the
/// host's page cache while it has room. Called for each loaded object.
unsafe extern "C" fn forget_unwritable(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: `dl_iterate_phdr` gives a valid object for the time of the call.
    let object = unsafe { &*object };
    // SAFETY: the object has so many program headers there, which stay while it is loaded.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    let base = object.dlpi_addr as usize;
    let unwritable = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for header in headers.iter().filter(unwritable) {
        let start = (base + header.p_vaddr as usize).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize) / PAGE * PAGE;
        if start < end {
            // SAFETY: whole pages of a segment that is mapped from a file without write access and
            // was never written: the linker relocates writable segments only. They read the same
            // when they are mapped again.
            let given = unsafe {
                madvise(ptr::without_provenance_mut(start), end - start, Advice::LinuxDontNeed)
            };
            // On an error they stay mapped.
            let _ = given;
        }
    }
    0
}

/// Frees the pages below the stack's end, where start-up's deepest calls were.
fn forget_below_stack() {
    let here = 0u8;
    let end = (ptr::from_ref(&here).addr() - STACK_MARGIN) / PAGE * PAGE;
    // SAFETY: below the stack pointer, except for a margin, the main thread's stack holds nothing,
    // and nothing else is mapped so close to it; parts that are not mapped are skipped.
    let given = unsafe {
        madvise(ptr::without_provenance_mut(end - STACK_DEPTH), STACK_DEPTH, Advice::LinuxDontNeed)
    };
    // ENOMEM says that part of it is not mapped, which is as good.
    let _ = given;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident and anonymous kilobytes of the mappings that `which` chooses by their line.
    fn memory(which: impl Fn(&str) -> bool) -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut chosen, mut resident, mut anonymous) = (false, 0, 0);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (name, value) = (words.next().unwrap(), words.next());
            let kib = || value.and_then(|word| word.parse().ok()).unwrap_or(0);
            match name {
                "Rss:" if chosen => resident += kib(),
                "Anonymous:" if chosen => anonymous += kib(),
                _ if !name.ends_with(':') => chosen = which(line),
                _ => {}
            }
        }
        (resident, anonymous)
    }

    #[test]
    fn code_leaves_and_comes_back() {
        let program = std::env::current_exe().unwrap();
        let code =
            |line: &str| line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
        let (before, _) = memory(code);
        let message = format!("{program:?} has {before} KiB of code");
        give_back_start_up();
        let (after, written) = memory(code);
        assert!(after < before, "{message}, then {after}");
        assert_eq!(written, 0, "code that was written would be lost");
        // All of it works as before.
        assert_eq!(format!("{program:?} has {before} KiB of code"), message);
    }

    #[inline(never)]
    fn deep(depth: usize) -> u64 {
        let frame = std::hint::black_box([depth as u8; 1024]);
        if depth == 0 { 0 } else { deep(depth - 1) + u64::from(frame[depth % 1024] & 1) }
    }

    #[test]
    fn frames_above_the_stack_pointer_stay() {
        let kept = std::hint::black_box([7u8; 64 << 10]);
        assert_eq!(deep(100), 50);
        give_back_start_up();
        assert!(kept.iter().all(|byte| *byte == 7));
        assert_eq!(deep(100), 50);
    }
}
