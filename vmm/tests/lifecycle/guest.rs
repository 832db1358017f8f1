// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests of a few instructions, as ELF kernels without a PVH note: entered in 64-bit mode.

/// What the guest does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    /// Halts forever.
    Halt,
    /// Loops forever without an exit.
    Spin,
    /// Writes to the serial port forever.
    Flood,
    /// Writes each byte that it reads from the serial port back to it.
    Echo,
    /// Writes `!` to the serial port, then resets through the keyboard controller.
    SayAndReset,
    /// Jumps to the reset vector, where no firmware is.
    JumpToFirmware,
}

impl Program {
    fn code(self) -> &'static [u8] {
        match self {
            // hlt; jmp
            Self::Halt => b"\xf4\xeb\xfd",
            // jmp
            Self::Spin => b"\xeb\xfe",
            // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp
            Self::Flood => b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd",
            // mov dx, 0x3fd; in al, dx; test al, 1; jz; mov dx, 0x3f8; in al, dx; out dx, al; jmp
            Self::Echo => b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xfb\x66\xba\xf8\x03\xec\xee\xeb\xef",
            // mov dx, 0x3f8; mov al, '!'; out dx, al; mov al, 0xfe; out 0x64, al; hlt; jmp
            Self::SayAndReset => b"\x66\xba\xf8\x03\xb0!\xee\xb0\xfe\xe6\x64\xf4\xeb\xfd",
            // mov rax, 0xfffffff0; jmp rax
            Self::JumpToFirmware => b"\xb8\xf0\xff\xff\xff\xff\xe0",
        }
    }

    /// The kernel image: one segment at 2 MiB.
    pub(crate) fn image(self) -> Vec<u8> {
        const LOAD: u64 = 2 << 20;
        let code = self.code();
        let mut image = vec![0u8; 64 + 56];
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        image[16] = 2; // e_type
        image[18] = 62; // e_machine
        image[24..32].copy_from_slice(&LOAD.to_le_bytes()); // e_entry
        image[32] = 64; // e_phoff
        image[54] = 56; // e_phentsize
        image[56] = 1; // e_phnum
        let header = &mut image[64..];
        header[0] = 1; // PT_LOAD
        header[8] = 120; // p_offset
        header[24..32].copy_from_slice(&LOAD.to_le_bytes()); // p_paddr
        header[32..40].copy_from_slice(&(code.len() as u64).to_le_bytes()); // p_filesz
        header[40..48].copy_from_slice(&(code.len() as u64).to_le_bytes()); // p_memsz
        image.extend_from_slice(code);
        image
    }
}
