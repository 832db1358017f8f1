// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A monitor under test: started by its command line, spoken to over its socket, and killed at the
//! end of the test in any case.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guest::Program;

/// How long anything may take before the test has failed: an upper bound for a machine under load,
/// and no expectation of time.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Whether there is a KVM to test with; says so if not.
pub(crate) fn kvm() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("no usable /dev/kvm: nothing is tested");
    }
    there
}

/// The monitor, and its folder.
pub(crate) struct Monitor {
    pub(crate) child: Child,
    pub(crate) dir: TempDir,
}

/// The monitor's binary, with signals as a shell in the foreground leaves them: one in the background
/// may have the keyboard's ignored, and the monitor keeps that.
pub(crate) fn ballast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(number, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

impl Monitor {
    /// `ballast run` with a guest that runs `program`; `configure` adds arguments and streams.
    pub(crate) fn run(program: Program, configure: impl FnOnce(&Path, &mut Command)) -> Self {
        Self::run_by(ballast(), program, configure)
    }

    /// The same by another command, to which the monitor's arguments are added.
    pub(crate) fn run_by(
        mut command: Command,
        program: Program,
        configure: impl FnOnce(&Path, &mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        std::fs::write(&kernel, program.image()).unwrap();
        command.args(["run", "--memory", "16M", "--kernel"]).arg(kernel);
        command.arg("--api-sock").arg(dir.path().join("api"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(dir.path().join("stderr")).unwrap());
        configure(dir.path(), &mut command);
        Self { child: command.spawn().unwrap(), dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api")
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// Waits for `done` to be true.
    pub(crate) fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}; {}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a request; the status, once there is a reply.
    pub(crate) fn request(&mut self, method: &str, path: &str, body: &str) -> u16 {
        let mut stream = None;
        self.wait_for("the API", |monitor| {
            stream = UnixStream::connect(monitor.socket()).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n");
        stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn signal(&self, number: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, number) }, 0);
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        self.wait_for("its end", |monitor| {
            status = monitor.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It has ended already where the test has passed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
