// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Invalid flags and files: exit status 1 and a one-line error.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::guest::Guest;
use harness::monitor::{Monitor, Spec};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq, host};

/// Runs Ballast to its end.
fn ballast<S: AsRef<OsStr>>(context: &Context, arguments: &[S]) -> Result<Output> {
    run(Command::new(context.payload.ballast()).args(arguments))
}

fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(Error::io("starting ballast"))
}

/// Fails the test unless Ballast failed with an error that contains one of `words`.
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Errors of the command line itself are clap's, which ends with 2.
    check!(matches!(output.status.code(), Some(1 | 2)), "{}: {said}", output.status);
    let lower = said.to_lowercase();
    check!(words.iter().any(|word| lower.contains(word)), "none of {words:?} in: {said}");
    check!(!lower.contains("panicked"), "{said}");
    Ok(())
}

/// Unknown flags, invalid values, conflicts.
pub(crate) fn rejects_invalid_flags(context: &Context) -> Result<()> {
    let kernel = context.payload.vmlinux();
    let kernel = kernel.to_str().unwrap_or_default();
    for (arguments, words) in [
        (&["run", "--no-such-flag"][..], &["no-such-flag"][..]),
        (&["no-such-command"], &["no-such-command"]),
        (&["run"], &["kernel"]),
        (&["run", "--kernel", kernel, "--cpus", "0"], &["cpus", "vcpu"]),
        (&["run", "--kernel", kernel, "--cpus", "many"], &["cpus"]),
        (&["run", "--kernel", kernel, "--memory", "lots"], &["memory"]),
        (&["run", "--kernel", kernel, "--memory", "0"], &["memory"]),
        (&["run", "--initrd", kernel, "--config", "/nowhere.json"], &["kernel"]),
        (&["run", "--config", "/nowhere.json"], &["nowhere.json"]),
    ] {
        refused(&ballast(context, arguments)?, words)
            .map_err(|error| Error::Check(format!("{arguments:?}: {error}")))?;
    }
    Ok(())
}

/// More memory than the host has.
pub(crate) fn reports_missing_host_memory(context: &Context) -> Result<()> {
    let more = format!("{}M", (host::meminfo()?["MemTotal"] >> 20) + 1024);
    let kernel = context.payload.vmlinux();
    let arguments = [
        OsStr::new("run"),
        "--kernel".as_ref(),
        kernel.as_ref(),
        "--memory".as_ref(),
        more.as_ref(),
    ];
    refused(&ballast(context, &arguments)?, &["mem_size"])
}

/// Files that are missing, folders, text, an ELF program, an image cut short.
pub(crate) fn rejects_a_file_that_is_not_a_kernel(context: &Context) -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let text = dir.path().join("text");
    fs::write(&text, "not a kernel\n".repeat(1000)).map_err(Error::io("writing"))?;
    let short = dir.path().join("short");
    let image = fs::read(context.payload.vmlinux()).map_err(Error::io("reading vmlinux"))?;
    fs::write(&short, &image[..image.len() / 3]).map_err(Error::io("writing"))?;
    let empty = dir.path().join("empty");
    fs::write(&empty, "").map_err(Error::io("writing"))?;
    for path in [&dir.path().join("missing"), &dir.path().to_owned(), &text, &short, &empty] {
        let arguments = [OsStr::new("run"), "--kernel".as_ref(), path.as_ref()];
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        refused(&ballast(context, &arguments)?, &[&name])
            .map_err(|error| Error::Check(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Initial RAM disks that are missing, folders, or larger than memory.
pub(crate) fn rejects_an_unreadable_initrd(context: &Context) -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let large = dir.path().join("large");
    let file = fs::File::create(&large).map_err(Error::io("creating"))?;
    file.set_len(1 << 30).map_err(Error::io("growing"))?;
    let kernel = context.payload.vmlinux();
    for path in [&dir.path().join("missing"), &dir.path().to_owned(), &large] {
        let mut command = Command::new(context.payload.ballast());
        command.arg("run").arg("--kernel").arg(&kernel).arg("--initrd").arg(path);
        command.args(["--memory", "128M"]);
        refused(&run(&mut command)?, &["initrd", "memory"])
            .map_err(|error| Error::Check(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Without permission for /dev/kvm, the error names the group that has it.
pub(crate) fn names_the_group_that_may_use_kvm(context: &Context) -> Result<()> {
    const NOBODY: u32 = 65534;
    // The payload may lie where only root can look.
    let dir = tempfile::tempdir_in("/tmp").map_err(Error::io("creating a folder"))?;
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), everyone).map_err(Error::io("changing permissions"))?;
    let copy = |from: &std::path::Path, name: &str| -> Result<std::path::PathBuf> {
        let to = dir.path().join(name);
        fs::copy(from, &to).map_err(Error::io(format!("copying {name}")))?;
        Ok(to)
    };
    let (program, kernel) = (
        copy(&context.payload.ballast(), "ballast")?,
        copy(&context.payload.vmlinux(), "vmlinux")?,
    );
    let mut command = Command::new(program);
    command.arg("run").arg("--kernel").arg(kernel).uid(NOBODY).gid(NOBODY);
    let output = run(&mut command)?;
    refused(&output, &["/dev/kvm"])?;
    refused(&output, &["group"])
}

/// A socket with another instance listening is kept; a stale socket is replaced.
pub(crate) fn replaces_stale_sockets_only(context: &Context) -> Result<()> {
    let first = Guest::boot(&context.ballast(), Spec::new(&context.payload, 128), &context.logs)?;
    let socket = first.monitor.api().socket().to_owned();
    let arguments = [OsStr::new("--api-sock"), socket.as_ref()];
    refused(&ballast(context, &arguments)?, &["in use", "live", "already"])?;
    check!(first.monitor.api().get("/").is_ok(), "the first instance lost its socket");
    check_eq!(first.power_off()?.code(), Some(0));

    let mut second =
        Monitor::start_ballast(&context.payload.ballast(), &context.logs, |dir, command| {
            // Bound and closed: the file stays, without a listener.
            drop(UnixListener::bind(dir.join("api.sock")));
            command.arg("--api-sock").arg(dir.join("api.sock"));
        })?;
    second.poll("an answer on the replaced socket", Duration::from_secs(30), |monitor| {
        Ok(monitor.api().get("/").ok())
    })?;
    Ok(())
}
