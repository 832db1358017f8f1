// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: arguments into a [`crate::launch::Launch`], or into a request to a
//! monitor that runs.
//!
//! Without a subcommand, or called by the name `firecracker`, the arguments are Firecracker's, so
//! that tools which start it can start this instead. Every error is one line on standard error and
//! exit status 1; the status of `run` is the machine's ([`crate::exit::ExitReason::code`]).
//!
//! - `run.rs`: `ballast run`
//! - `firecracker.rs`: Firecracker's flags
//! - `values.rs`: sizes, and `VALUE,key=value,flag` arguments
//! - `remote.rs`: subcommands that ask a running monitor
//! - `target.rs`: which one, and requests to it
//! - `compaction.rs`: those about the host's side of guest memory
//! - `parking.rs`: `ballast memory park` and `unpark`
//! - `policy.rs`: `ballast memory policy`
//! - `top/`: the same live, on the whole terminal
//! - `client.rs`: HTTP over its socket
//! - `check.rs`: `ballast check`
//! - `error.rs`: errors that end `ballast`, and their exit status
//! - `version.rs`: output of `--version`

mod check;
mod client;
mod compaction;
mod error;
mod firecracker;
mod parking;
mod policy;
mod remote;
mod run;
mod target;
mod top;
mod values;
mod version;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::api;
use crate::host::descriptor;
use crate::launch::Launch;
pub use error::CliError;
use firecracker::FirecrackerArgs;
use run::RunArgs;
use version::version_text;

/// Runs a virtual machine with movable, reclaimable memory, or controls a running one.
#[derive(Debug, Parser)]
#[command(name = "ballast", bin_name = "ballast", disable_version_flag = true)]
#[command(after_help = "Without a subcommand, Firecracker's flags are taken: \
    `ballast --api-sock PATH [--id ID] [--config-file PATH] …`.\n\
    Exit status: 0 the guest shut down, 1 configuration or host error, 2 the guest crashed.")]
struct Cli {
    #[command(subcommand)]
    command: BallastCommand,
}

#[derive(Debug, Subcommand)]
enum BallastCommand {
    /// Start a virtual machine
    Run(Box<RunArgs>),
    /// Show or change the balloon of a running machine
    #[command(subcommand)]
    Balloon(remote::BalloonCommand),
    /// Show or change the host memory behind a running machine
    #[command(subcommand)]
    Memory(remote::MemoryCommand),
    /// Show or change the display of a running machine
    #[command(subcommand)]
    Gpu(remote::GpuCommand),
    /// Watch memory, balloon, GPU and host memory pressure live
    Top(top::TopArgs),
    /// Pause all vCPUs
    Pause(target::Target),
    /// Resume all vCPUs
    Resume(target::Target),
    /// Press Ctrl+Alt+Del, or stop the machine immediately
    Shutdown(remote::Shutdown),
    /// Print all counters of a running monitor as JSON
    Metrics(target::Target),
    /// Print the version, and that of a running monitor if a socket is given
    Version(target::MaybeTarget),
    /// Check whether this host can run machines, and print what to change if not
    Check,
    /// Print the OpenAPI description of the API
    Openapi,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command in `args`; returns the exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match dispatch(&args) {
        Ok(status) => ExitCode::from(status),
        // The reader of the output has closed the pipe: `ballast … | head`.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::from(1)
        }
        Err(error) => {
            descriptor::say(&error.to_string());
            ExitCode::from(error.status(speaks_firecracker(&args)))
        }
    }
}

fn dispatch(args: &[OsString]) -> Result<u8, CliError> {
    let mut out = std::io::stdout().lock();
    if speaks_firecracker(args) {
        let Some(args) = parsed(FirecrackerArgs::try_parse_from(until_dashes(args)), &mut out)?
        else {
            return Ok(0);
        };
        if args.version {
            write!(out, "{}", version_text())?;
            return Ok(0);
        }
        drop(out);
        return launch(args.into_launch()?);
    }
    let Some(cli) = parsed(Cli::try_parse_from(args), &mut out)? else { return Ok(0) };
    match cli.command {
        BallastCommand::Run(args) => {
            drop(out);
            return launch(args.into_launch()?);
        }
        BallastCommand::Balloon(command) => command.run(&mut out)?,
        BallastCommand::Memory(command) => command.run(&mut out)?,
        BallastCommand::Gpu(command) => command.run(&mut out)?,
        BallastCommand::Top(args) => {
            drop(out);
            args.run()?;
            return Ok(0);
        }
        BallastCommand::Pause(target) => target.pause()?,
        BallastCommand::Resume(target) => target.resume()?,
        BallastCommand::Shutdown(command) => command.run()?,
        BallastCommand::Metrics(target) => target.metrics(&mut out)?,
        BallastCommand::Version(target) => target.version(&mut out)?,
        BallastCommand::Check => check::run(&mut out)?,
        BallastCommand::Openapi => out.write_all(api::openapi::json().as_bytes())?,
        BallastCommand::Completions { shell } => {
            // It panics where a write fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ballast", &mut script);
            out.write_all(&script)?;
        }
    }
    out.flush()?;
    Ok(0)
}

fn launch(launch: Launch) -> Result<u8, CliError> {
    Ok(launch.run()?)
}

/// Whether the arguments are Firecracker's: by the program's name, or since the first is a flag.
fn speaks_firecracker(args: &[OsString]) -> bool {
    let name = args.first().and_then(|program| Path::new(program).file_name());
    if name == Some(OsStr::new("firecracker")) {
        return true;
    }
    args.get(1).is_some_and(|first| {
        first.as_encoded_bytes().starts_with(b"-") && first != "-h" && first != "--help"
    })
}

/// Like Firecracker, ignore arguments after `--`.
fn until_dashes(args: &[OsString]) -> &[OsString] {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    &args[..end]
}

/// The parsed arguments; `None` where help was asked for, and printed.
fn parsed<T>(result: clap::error::Result<T>, out: &mut impl Write) -> Result<Option<T>, CliError> {
    match result {
        Ok(args) => Ok(Some(args)),
        Err(error) if error.exit_code() == 0 => {
            let help = error.render();
            if std::io::stdout().is_terminal() {
                write!(out, "{}", help.ansi())?;
            } else {
                write!(out, "{help}")?;
            }
            Ok(None)
        }
        Err(error) => Err(CliError::Usage(one_line(&error))),
    }
}

/// clap's error in one line: its first paragraph, and where to read more.
fn one_line(error: &clap::Error) -> String {
    use clap::error::ErrorKind;
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no subcommand given: see `ballast --help`".to_owned();
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    format!("{}; `--help` lists all of them", line.strip_prefix("error: ").unwrap_or(&line))
}

#[cfg(test)]
mod tests;
