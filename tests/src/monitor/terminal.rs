// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A terminal as standard input, for monitors that read the console from nothing else.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Stdio;

use rustix::mount::{MountFlags, mount};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::{Error, Result};

/// Where the kernel looks for the file system of terminals.
const TERMINALS: &str = "/dev/pts";

/// A new terminal in raw mode: our end, and a child's standard input.
pub(super) fn open() -> Result<(File, Stdio)> {
    let (ours, theirs) = pair().map_err(Error::io("opening a terminal"))?;
    Ok((ours, Stdio::from(theirs)))
}

fn pair() -> io::Result<(File, File)> {
    mount_terminals()?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    // In other modes the terminal echoes what is typed, and nobody reads the echo.
    let mut modes = tcgetattr(&theirs)?;
    modes.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    Ok((File::from(ours), File::from(theirs)))
}

/// Mounts the file system of terminals, which the outer machine starts without.
fn mount_terminals() -> io::Result<()> {
    if Path::new(TERMINALS).join("ptmx").exists() {
        return Ok(());
    }
    fs::create_dir_all(TERMINALS)?;
    Ok(mount(c"devpts", TERMINALS, c"devpts", MountFlags::empty(), None)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_reads_what_is_typed_from_a_terminal() {
        let (mut ours, theirs) = open().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 0 && head -c 5"]).stdin(theirs);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        ours.write_all(b"typed").unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"typed");
    }
}
