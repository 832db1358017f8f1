// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests of a few instructions in 64-bit mode, for what needs no operating system: they run on any
//! /dev/kvm, of software too.

/// Writes `!` to the serial port, then resets by the keyboard controller.
pub(crate) const SAY_AND_RESET: &[u8] = b"\x66\xba\xf8\x03\xb0!\xee\xb0\xfe\xe6\x64\xf4\xeb\xfd";
/// Writes `x` to the serial port for ever.
pub(crate) const FLOOD: &[u8] = b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd";

/// Writes `text` to the serial port; resets by the keyboard controller once a key is pressed.
pub(crate) fn say_and_wait_for_a_key(text: &[u8]) -> Vec<u8> {
    // mov dx, 0x3f8
    let mut code = b"\x66\xba\xf8\x03".to_vec();
    for &byte in text {
        // mov al, byte; out dx, al
        code.extend([0xb0, byte, 0xee]);
    }
    // in al, 0x64; test al, 1; jz; then mov al, 0xfe; out 0x64, al; hlt; jmp
    code.extend(b"\xe4\x64\xa8\x01\x74\xfa\xb0\xfe\xe6\x64\xf4\xeb\xfd");
    code
}

/// `code` as an ELF kernel at 2 MiB.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    let load = (2u64 << 20).to_le_bytes();
    let size = (code.len() as u64).to_le_bytes();
    let mut image = vec![0u8; 64 + 56];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // e_type, e_machine, e_phoff, e_phentsize, e_phnum
    (image[16], image[18], image[32], image[54], image[56]) = (2, 62, 64, 56, 1);
    image[24..32].copy_from_slice(&load);
    let segment = &mut image[64..];
    // p_type, p_offset
    (segment[0], segment[8]) = (1, 120);
    segment[24..32].copy_from_slice(&load);
    segment[32..40].copy_from_slice(&size);
    segment[40..48].copy_from_slice(&size);
    image.extend_from_slice(code);
    image
}
