// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes cpio archives in the "newc" form that the kernel unpacks as an initial RAM disk
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;
const LINK: u32 = 0o120_777;
const TRAILER: &str = "TRAILER!!!";

/// An archive being written.
pub(crate) struct Archive<W> {
    output: W,
    /// Number of the next entry's inode; no two entries share one.
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, inode: 1, directories: BTreeSet::new() }
    }

    /// Adds a regular file with these contents.
    pub(crate) fn bytes(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.header(path, FILE | mode, contents.len() as u64, (0, 0))?;
        self.output.write_all(contents)?;
        self.pad(contents.len() as u64)
    }

    /// Adds the file `from` of the host; it is read in pieces.
    pub(crate) fn file(&mut self, path: &str, mode: u32, from: &Path) -> io::Result<()> {
        self.parents(path)?;
        let file = File::open(from)?;
        let size = file.metadata()?.len();
        self.header(path, FILE | mode, size, (0, 0))?;
        let copied = io::copy(&mut file.take(size), &mut self.output)?;
        if copied != size {
            return Err(io::Error::other("the file shrank while it was read"));
        }
        self.pad(size)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.header(path, LINK, to.len() as u64, (0, 0))?;
        self.output.write_all(to.as_bytes())?;
        self.pad(to.len() as u64)
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, path: &str, numbers: (u32, u32)) -> io::Result<()> {
        self.parents(path)?;
        self.header(path, CHARACTER_DEVICE, 0, numbers)
    }

    /// Ends the archive and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, 0, 0, (0, 0))?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let mut above = String::new();
        let parts = Path::new(path).parent().into_iter().flat_map(Path::components);
        for part in parts.filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        }) {
            if !above.is_empty() {
                above.push('/');
            }
            above.push_str(part);
            if self.directories.insert(above.clone()) {
                self.header(&above, DIRECTORY, 0, (0, 0))?;
            }
        }
        Ok(())
    }

    fn header(&mut self, path: &str, mode: u32, size: u64, device: (u32, u32)) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(size).map_err(|_| io::Error::other("file of 4 GiB or more"))?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let inode = self.inode;
        self.inode += 1;
        let (links, time) = (1_u32, 0_u32);
        let fields = [inode, mode, 0, 0, links, time, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08X}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        let length = header.len() as u64;
        self.output.write_all(&header)?;
        self.pad(length)
    }

    /// Entries and contents begin at multiples of four.
    fn pad(&mut self, written: u64) -> io::Result<()> {
        let odd = written % 4;
        if odd == 0 { Ok(()) } else { self.output.write_all(&[0; 3][..(4 - odd) as usize]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.bytes("etc/outer/argv", 0o644, b"hello").unwrap();
        archive.bytes("etc/modules", 0o644, b"").unwrap();
        archive.character_device("dev/console", (5, 1)).unwrap();
        archive.link("disk", "/dev/vda").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        std::fs::write(&path, &bytes).unwrap();
        let Ok(output) =
            Command::new("cpio").arg("-t").stdin(Stdio::from(File::open(&path).unwrap())).output()
        else {
            eprintln!("no cpio here to read the archive with");
            return;
        };
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "etc\netc/outer\netc/outer/argv\netc/modules\ndev\ndev/console\ndisk\n"
        );
    }
}
