// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests of a few instructions in 64-bit mode, for what needs no operating system: they run on any
//! /dev/kvm, of software too.

/// Writes `!` to the serial port, then resets by the keyboard controller.
pub(crate) const SAY_AND_RESET: &[u8] = b"\x66\xba\xf8\x03\xb0!\xee\xb0\xfe\xe6\x64\xf4\xeb\xfd";

/// Where the parts of a script's image are: code, page tables, script, data.
const CODE: u32 = 2 << 20;
const TABLES: u32 = CODE + 0x1000;
const STEPS: u32 = CODE + 0x8000;
const DATA: u32 = CODE + 0x1_0000;

/// Runs a script in an endless loop: takes pairs of an address and a value. An even address is
/// written to; at an odd one, without its lowest bit, 16 bits are waited for, while the serial port
/// is flooded; 0 is the end. `x` goes to the serial port each time that it begins.
const INTERPRETER: &[u8] = &[
    0xb8, 0x00, 0x10, 0x20, 0x00, //    mov $TABLES, %eax
    0x0f, 0x22, 0xd8, //                mov %rax, %cr3
    0xbe, 0x00, 0x80, 0x20, 0x00, // b: mov $STEPS, %esi
    0xba, 0xf8, 0x03, 0x00, 0x00, //    mov $0x3f8, %edx
    0xb0, b'x', 0xee, //                mov $'x', %al; out %al, %dx
    0xad, 0x85, 0xc0, 0x74, 0xee, // n: lodsl; test %eax, %eax; jz b
    0x89, 0xc7, 0xad, //                mov %eax, %edi; lodsl
    0x40, 0xf6, 0xc7, 0x01, //          test $1, %dil
    0x75, 0x04, //                      jnz w
    0x89, 0x07, 0xeb, 0xee, //          mov %eax, (%rdi); jmp n
    0x83, 0xe7, 0xfe, //             w: and $-2, %edi
    0x66, 0x39, 0x07, 0x74, 0xe6, // a: cmp %ax, (%rdi); je n
    0xee, 0xeb, 0xf8, //                out %al, %dx; jmp a
];

/// A guest that writes to memory and registers, and waits for memory, in a loop: enough to drive
/// devices without an operating system. The first 4 GiB are mapped one to one.
pub(crate) struct Script {
    steps: Vec<u32>,
    data: Vec<u8>,
}

impl Script {
    /// No step yet.
    pub(crate) fn new() -> Self {
        Self { steps: Vec::new(), data: Vec::new() }
    }

    /// Writes `value` to `address`, a multiple of 4.
    pub(crate) fn write(&mut self, address: u32, value: u32) {
        assert!(address != 0 && address.is_multiple_of(4));
        self.steps.extend([address, value]);
    }

    /// Waits until the 16 bits at `address` are `value`.
    pub(crate) fn wait(&mut self, address: u32, value: u32) {
        assert!(address.is_multiple_of(2));
        self.steps.extend([address | 1, value]);
    }

    /// Zeroed memory of `bytes` bytes; its address, a multiple of 16.
    pub(crate) fn reserve(&mut self, bytes: u32) -> u32 {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at + bytes as usize, 0);
        DATA + at as u32
    }

    /// Memory that holds `words`.
    pub(crate) fn data(&mut self, words: &[u32]) -> u32 {
        let at = self.reserve(4 * words.len() as u32);
        self.place(at, words);
        at
    }

    /// Puts `words` where memory was reserved.
    pub(crate) fn place(&mut self, address: u32, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = (address - DATA) as usize;
        self.data[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    /// Puts the low 16 bits of `value` where memory was reserved.
    pub(crate) fn place_u16(&mut self, address: u32, value: u32) {
        let at = (address - DATA) as usize;
        self.data[at..at + 2].copy_from_slice(&value.to_le_bytes()[..2]);
    }

    /// The guest as a kernel.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; (DATA - CODE) as usize];
        let mut put = |address: u32, bytes: &[u8]| {
            let at = (address - CODE) as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(CODE, INTERPRETER);
        // One page of the first level, one of the second with four entries, four of 2 MiB pages:
        // present and writable, the last ones large too.
        let (second, third) = (TABLES + 0x1000, TABLES + 0x2000);
        put(TABLES, &u64::from(second | 3).to_le_bytes());
        for gib in 0..4 {
            put(second + 8 * gib, &u64::from((third + 0x1000 * gib) | 3).to_le_bytes());
        }
        for block in 0..2048u32 {
            put(third + 8 * block, &((u64::from(block) << 21) | 0x83).to_le_bytes());
        }
        assert!(4 * self.steps.len() < (DATA - STEPS) as usize - 8, "the script fits");
        for (number, step) in (0..).zip(&self.steps) {
            put(STEPS + 4 * number, &step.to_le_bytes());
        }
        kernel(&[image, self.data.clone()].concat())
    }
}

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
