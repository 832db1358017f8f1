// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! passt(1): a process that gives a guest the host's network without privileges. It takes frames from
//! a stream socket and makes connections of them by the host's own sockets.
//!
//! It ends with its socket, so also when this process is killed.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::one_line::one_line;

/// The program, looked for in PATH.
const PROGRAM: &str = "passt";
/// The guest's network: the addresses that QEMU's user network has.
const NETWORK: [&str; 8] = [
    "--address=10.0.2.15",
    "--netmask=24",
    "--gateway=10.0.2.2",
    // Name servers of the host, also those that listen on its loopback address only.
    "--dns-forward=10.0.2.3",
    // The gateway is not the host: the guest reaches nothing that listens on loopback addresses.
    "--no-map-gw",
    // Its words are for the log, and it stays a child.
    "--foreground",
    "--quiet",
    "--stderr",
];
/// The user that owns nothing, and its group.
const NOBODY: u32 = 65534;
/// Bytes of its output that are reported when it has ended.
const MAX_WORDS: u64 = 4096;

/// passt cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error(
        "passt is not installed: install it (on Debian `apt-get install passt`), or give the \
         interface a TAP"
    )]
    Missing,
    /// The host refused something.
    #[error("cannot start passt: {0}")]
    Host(#[from] io::Error),
}

/// What it is to do beside its defaults.
#[derive(Debug, Clone, Default)]
pub struct PasstOptions {
    /// MTU that it tells the guest by DHCP.
    pub mtu: Option<u16>,
    /// TCP ports of the host that lead to the guest, in passt's words (`--tcp-ports`).
    pub tcp_ports: Option<String>,
}

/// The process. Dropping it ends it.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    ended: OwnedFd,
    words: OwnedFd,
}

/// How it has ended by itself.
#[derive(Debug)]
pub struct PasstEnd {
    /// Its exit status.
    pub status: ExitStatus,
    /// The last line that it wrote to standard error; may be empty.
    pub words: String,
}

impl Passt {
    /// Starts it; gives the stream of frames too.
    ///
    /// # Errors
    ///
    /// See [`PasstError`].
    pub fn start(options: &PasstOptions) -> Result<(Self, OwnedFd), PasstError> {
        Self::start_program(PROGRAM, options)
    }

    fn start_program(program: &str, options: &PasstOptions) -> Result<(Self, OwnedFd), PasstError> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)?;
        // What does not fit is lost: it never waits for us, and we keep a bounded amount.
        let (words, stderr) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from)?;
        let mut command = Command::new(program);
        // As standard input it needs no descriptor that stays open by accident.
        command.args(NETWORK).arg("--fd=0").stdin(theirs).stdout(Stdio::null()).stderr(stderr);
        if rustix::process::geteuid().is_root() {
            // By default it looks up the name `nobody`, which a small root file system may lack.
            command.arg(format!("--runas={NOBODY}:{NOBODY}"));
        }
        if let Some(mtu) = options.mtu {
            command.arg(format!("--mtu={mtu}"));
        }
        if let Some(ports) = &options.tcp_ports {
            command.arg(format!("--tcp-ports={ports}"));
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Host(error),
        })?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK) {
            Ok(ended) => Ok((Self { child, ended, words }, ours)),
            Err(error) => {
                end(&mut child);
                Err(io::Error::from(error).into())
            }
        }
    }

    /// A descriptor that becomes readable when it has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// How it has ended, if it has.
    pub fn end(&mut self) -> Option<PasstEnd> {
        let status = self.child.try_wait().ok()??;
        Some(PasstEnd { status, words: self.last_words() })
    }

    fn last_words(&self) -> String {
        let mut text = Vec::new();
        if let Ok(words) = self.words.try_clone() {
            // Ends with an error where nothing more is there but something still has it open.
            let _ = std::fs::File::from(words).take(MAX_WORDS).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        one_line(line).into_owned()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Gone already where it has ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// A program in the place of passt.
    fn stand_in(script: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passt");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    fn wait_for_end(passt: &Passt) {
        poll(&mut [PollFd::new(&passt.ended(), PollFlags::IN)], None).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = Passt::start_program("/nonexistent/passt", &PasstOptions::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("not installed") && error.contains("apt-get"), "{error}");
    }

    #[test]
    fn its_socket_is_standard_input_and_its_options_are_given() {
        let (_dir, program) = stand_in("echo \"$@\" >&2; exec cat >&2");
        let options = PasstOptions { mtu: Some(9000), tcp_ports: Some("2222:22".into()) };
        let (mut passt, socket) = Passt::start_program(&program, &options).unwrap();
        rustix::io::write(&socket, b"last words\n").unwrap();
        drop(socket);
        wait_for_end(&passt);
        let words = std::fs::File::from(passt.words.try_clone().unwrap());
        let mut text = String::new();
        let _ = { words }.read_to_string(&mut text);
        for option in ["--fd=0", "--mtu=9000", "--tcp-ports=2222:22", "--no-map-gw"] {
            assert!(text.split_whitespace().any(|word| word == option), "{option}: {text}");
        }
        assert!(text.ends_with("last words\n"), "{text}");
        assert!(passt.end().unwrap().status.success());
    }

    #[test]
    fn its_end_is_told_with_its_words() {
        let (_dir, program) = stand_in("echo first >&2; printf 'no \\033interface\\n' >&2; exit 3");
        let (mut passt, _socket) = Passt::start_program(&program, &Default::default()).unwrap();
        wait_for_end(&passt);
        let end = passt.end().unwrap();
        assert_eq!(end.status.code(), Some(3));
        assert_eq!(end.words, "no \\u{1b}interface");
    }

    #[test]
    fn dropping_it_ends_it() {
        let (_dir, program) = stand_in("exec sleep 1000");
        let (mut passt, socket) = Passt::start_program(&program, &Default::default()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(passt.end().is_none());
        let id = passt.child.id();
        drop(passt);
        drop(socket);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
