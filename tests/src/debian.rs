// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that runs Debian from a copy of the image for tests (`cargo xtask rootfs debian
//! --with-tests`): with a login at its console, and a root shell on its vsock.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::{Value, json};

use crate::console::Line;
use crate::guest::EXIT_LIMIT;
use crate::limits::patient;
use crate::monitor::{Monitor, Program};
use crate::payload::Payload;
use crate::{Error, Result};

/// What getty prints on the serial console above its prompt (`/etc/issue` of the image).
pub const LOGIN_READY: &str = "GNU/Linux 12 debian ttyS0";
/// From the monitor's start to there.
const LOGIN_LIMIT: Duration = Duration::from_secs(240);
/// For one prompt to follow another.
const PROMPT_LIMIT: Duration = Duration::from_secs(120);
/// For a script of the shell, unless the caller knows better.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);
/// vsock port of the shell (`guest-shell.socket` of the image).
const SHELL_PORT: u32 = 1024;
/// Root's password at the consoles: docs/running.md.
const PASSWORD: &str = "ballast";

/// Copies the image for tests to `to`, leaving holes where it has zeroes.
pub fn copy_image(payload: &Payload, to: &Path) -> Result<()> {
    const PIECE: usize = 1 << 20;
    let from = payload.debian_image();
    let doing = || Error::io(format!("copying {}", from.display()));
    let mut source = File::open(&from).map_err(doing())?;
    // It may be a block device, whose length is not in its metadata.
    let size = source.seek(SeekFrom::End(0)).map_err(doing())?;
    let copy = File::create(to).map_err(doing())?;
    copy.set_len(size).map_err(doing())?;
    let mut piece = vec![0; PIECE];
    for at in (0..size).step_by(PIECE) {
        let left = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        source.read_exact_at(&mut piece[..left], at).map_err(doing())?;
        for (page, bytes) in (0u64..).zip(piece[..left].chunks(4096)) {
            if bytes.iter().any(|byte| *byte != 0) {
                copy.write_all_at(bytes, at + page * 4096).map_err(doing())?;
            }
        }
    }
    Ok(())
}

/// `text`, a configuration of `resources/`, with the paths of this test in the place of those in
/// the checkout; sockets go to `dir`.
pub fn configuration(text: &str, payload: &Payload, image: &Path, dir: &Path) -> Result<Value> {
    let mut config: Value = serde_json::from_str(text)
        .map_err(|error| Error::Check(format!("not a configuration: {error}")))?;
    config["boot-source"]["kernel_image_path"] = json!(payload.vmlinux());
    config["drives"][0]["path_on_host"] = json!(image);
    for (section, field, name) in
        [("vsock", "uds_path", "vsock.sock"), ("gpu", "vnc_socket", "vnc.sock")]
    {
        if config.get(section).is_some() {
            config[section][field] = json!(dir.join(name));
        }
    }
    Ok(config)
}

/// The guest.
#[derive(Debug)]
pub struct Debian {
    /// The monitor that it runs in.
    pub monitor: Monitor,
    vsock: Option<PathBuf>,
    input: File,
}

impl Debian {
    /// Starts Ballast with `config`; `dir` is where its files go.
    pub fn start(program: &Program, config: &Value, dir: &Path, logs: &Path) -> Result<Self> {
        let file = dir.join("config.json");
        std::fs::write(&file, config.to_string()).map_err(Error::io("writing config.json"))?;
        let monitor = Monitor::start_ballast(&program.path, logs, |work, command| {
            command.arg("run").arg("--config").arg(&file);
            command.arg("--api-sock").arg(work.join("api.sock")).args(["--log-level", "info"]);
        })?;
        Self::attach(monitor, config["vsock"]["uds_path"].as_str().map(PathBuf::from))
    }

    /// Debian in a monitor that was started otherwise; `vsock` is its socket.
    pub fn attach(mut monitor: Monitor, vsock: Option<PathBuf>) -> Result<Self> {
        let input = monitor.take_input().ok_or_else(|| Error::Check("no console".into()))?;
        Ok(Self { monitor, vsock, input })
    }

    /// Waits until one could log in at the console; gives the line that says so.
    pub fn wait_for_login(&self) -> Result<Line> {
        let ready = self.monitor.console().wait_for(0, LOGIN_READY, patient(LOGIN_LIMIT));
        ready.map_err(|error| Error::Check(format!("{error}\n{}", self.monitor.stderr())))
    }

    /// Logs in at the console as a person does.
    pub fn log_in(&mut self) -> Result<()> {
        for (prompt, answer) in [("login: ", "root"), ("Password: ", PASSWORD)] {
            self.prompt(prompt)?;
            self.type_line(answer)?;
        }
        self.prompt("# ")
    }

    /// Waits for a prompt at the console.
    pub fn prompt(&self, text: &str) -> Result<()> {
        self.monitor.console().wait_for_prompt(text, patient(PROMPT_LIMIT))
    }

    /// Types a line at the console.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let typed = self.input.write_all(format!("{line}\n").as_bytes());
        typed.and_then(|()| self.input.flush()).map_err(Error::io("typing at the console"))
    }

    /// Runs a script as root; returns its output. Fails if the script fails.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, SCRIPT_LIMIT)
    }

    /// As [`Self::run`], for scripts that may take long.
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        let (status, output) = self.shell(script, limit)?;
        crate::check!(status == 0, "the guest ended with {status}:\n{script}\n{output}");
        Ok(output)
    }

    fn shell(&self, script: &str, limit: Duration) -> Result<(u32, String)> {
        const STATUS: &str = "\nstatus of the script: ";
        let doing = || Error::io("talking to the guest's shell");
        let path = self.vsock.as_ref().ok_or_else(|| Error::Check("no vsock".into()))?;
        let mut stream = UnixStream::connect(path).map_err(doing())?;
        stream.set_read_timeout(Some(patient(limit))).map_err(doing())?;
        // In one piece: Firecracker hangs up if it finds only part of the line.
        stream.write_all(format!("CONNECT {SHELL_PORT}\n").as_bytes()).map_err(doing())?;
        let greeting = read_line(&mut stream).map_err(doing())?;
        crate::check!(greeting.starts_with("OK "), "the guest's shell: {greeting:?}");
        // The shell reads commands from the stream: programs must not.
        let words = format!(
            "(\nset -e\n{script}\n) </dev/null 2>&1; printf '{}%d' $?; exit\n",
            STATUS.replace('\n', "\\n")
        );
        stream.write_all(words.as_bytes()).map_err(doing())?;
        let mut output = Vec::new();
        stream.read_to_end(&mut output).map_err(doing())?;
        let output = String::from_utf8_lossy(&output).into_owned();
        let (text, status) = output.rsplit_once(STATUS).ok_or_else(|| {
            Error::Check(format!("the guest's shell ended early:\n{script}\n{output}"))
        })?;
        let status = status.trim().parse().map_err(|_| Error::Check(format!("{status:?}")))?;
        Ok((status, text.to_owned()))
    }

    /// Shuts Debian down; gives the monitor's exit status. Ends the test if the guest's kernel has
    /// warned of something.
    pub fn power_off(mut self) -> Result<ExitStatus> {
        let kernel = self.run("dmesg")?;
        let complaint = kernel
            .lines()
            .position(|line| crate::guest::COMPLAINTS.iter().any(|words| line.contains(words)));
        if let Some(at) = complaint {
            let shown: Vec<&str> = kernel.lines().skip(at).take(60).collect();
            return Err(Error::Check(format!(
                "the guest's kernel complains:\n{}",
                shown.join("\n")
            )));
        }
        // It may end the shell before that has said so.
        let _ = self.run("systemctl poweroff");
        self.monitor.wait_exit(EXIT_LIMIT * 2)
    }
}

fn read_line(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte)? == 1 {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_get_the_paths_of_the_test() {
        let text = include_str!("../../resources/debian.json");
        let payload = Payload::new("/payload");
        let config = configuration(text, &payload, Path::new("/d/image"), Path::new("/d")).unwrap();
        assert_eq!(config["boot-source"]["kernel_image_path"], "/payload/vmlinux");
        assert_eq!(config["drives"][0]["path_on_host"], "/d/image");
        assert_eq!(config["vsock"]["uds_path"], "/d/vsock.sock");
        assert_eq!(config["gpu"]["vnc_socket"], "/d/vnc.sock");
    }

    #[test]
    fn a_copied_image_is_the_same_and_has_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0u8; (3 << 20) + 512];
        bytes[5] = 1;
        *bytes.last_mut().unwrap() = 2;
        let payload = Payload::new(dir.path());
        std::fs::write(payload.debian_image(), &bytes).unwrap();
        let copy = dir.path().join("copy");
        copy_image(&payload, &copy).unwrap();
        assert!(std::fs::read(&copy).unwrap() == bytes);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
