// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `boot-source`: what the guest boots.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Faults;
use crate::host::files::open_regular;

/// Kernel command line where none is given: the console on the serial port, reset through the
/// keyboard controller, no waiting after a panic and for absent PS/2 devices.
pub const DEFAULT_BOOT_ARGS: &str =
    "console=ttyS0 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd";

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: ELF `vmlinux` or `bzImage`.
    #[schema(value_type = String)]
    pub kernel_image_path: PathBuf,
    /// Initial RAM file system.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line; [`DEFAULT_BOOT_ARGS`] where none is given.
    #[serde(default)]
    pub boot_args: Option<String>,
}

/// What kind of kernel image a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// 64-bit little-endian ELF (`vmlinux`).
    Elf,
    /// Linux boot protocol image (`bzImage`).
    BzImage,
}

impl BootSource {
    /// The kernel command line as the user wants it.
    pub fn cmdline(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS)
    }

    /// Notes what is wrong with this section and the files that it names.
    pub fn validate(&self, faults: &mut Faults) {
        match image_kind(&self.kernel_image_path) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let problem = format!(
                    "{}: neither an ELF vmlinux nor a bzImage",
                    self.kernel_image_path.display()
                );
                faults.add("boot-source.kernel_image_path", problem);
            }
            Err(cause) => {
                let problem = format!("{}: {cause}", self.kernel_image_path.display());
                faults.add("boot-source.kernel_image_path", problem);
            }
        }
        if let Some(initrd) = &self.initrd_path
            && let Err(cause) = open_regular(initrd)
        {
            faults.add("boot-source.initrd_path", format!("{}: {cause}", initrd.display()));
        }
        if self.cmdline().contains('\0') {
            faults.add("boot-source.boot_args", "contains a zero byte");
        }
    }
}

/// Reads the two magic numbers: ELF's, and `HdrS` at 0x202 of a Linux image
/// (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
fn image_kind(path: &Path) -> io::Result<Option<ImageKind>> {
    let file = open_regular(path)?;
    // \x7fELF, 64 bits, little-endian.
    if starts_with(&file, 0, b"\x7fELF\x02\x01")? {
        return Ok(Some(ImageKind::Elf));
    }
    Ok(starts_with(&file, 0x202, b"HdrS")?.then_some(ImageKind::BzImage))
}

fn starts_with<const N: usize>(file: &File, offset: u64, magic: &[u8; N]) -> io::Result<bool> {
    let mut found = [0; N];
    match file.read_exact_at(&mut found, offset) {
        Ok(()) => Ok(&found == magic),
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(cause) => Err(cause),
    }
}
