// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor that a subcommand asks: its socket, requests to it, and answers printed.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{get_bytes, request};
use super::error::CliError;
use super::version::version_text;

/// Which monitor.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// API socket of the running monitor
    #[arg(long, value_name = "PATH", env = "BALLAST_API_SOCK")]
    api_sock: PathBuf,
}

impl Target {
    pub(super) fn ask(
        &self,
        method: Method,
        resource: &str,
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        Ok(request(&self.api_sock, method, resource, body)?)
    }

    pub(super) fn get(&self, resource: &str) -> Result<Value, CliError> {
        self.ask(Method::GET, resource, None)
    }

    pub(super) fn put(&self, resource: &str, body: &Value) -> Result<Value, CliError> {
        self.ask(Method::PUT, resource, Some(body))
    }

    /// Asks for something that is no JSON.
    pub(super) fn get_bytes(
        &self,
        resource: &str,
        accept: &'static str,
    ) -> Result<bytes::Bytes, CliError> {
        Ok(get_bytes(&self.api_sock, resource, accept)?)
    }

    pub(super) fn patch(&self, resource: &str, body: &Value) -> Result<(), CliError> {
        self.ask(Method::PATCH, resource, Some(body))?;
        Ok(())
    }

    pub(super) fn pause(&self) -> Result<(), CliError> {
        self.patch("/vm", &json!({"state": "Paused"}))
    }

    pub(super) fn resume(&self) -> Result<(), CliError> {
        self.patch("/vm", &json!({"state": "Resumed"}))
    }

    pub(super) fn metrics(&self, out: &mut impl Write) -> Result<(), CliError> {
        print_json(out, &self.get("/metrics")?)
    }
}

/// Perhaps a monitor.
#[derive(Debug, Args)]
pub(super) struct MaybeTarget {
    /// API socket of a running monitor
    #[arg(long, value_name = "PATH", env = "BALLAST_API_SOCK")]
    api_sock: Option<PathBuf>,
}

impl MaybeTarget {
    pub(super) fn version(self, out: &mut impl Write) -> Result<(), CliError> {
        write!(out, "{}", version_text())?;
        if let Some(api_sock) = self.api_sock {
            let versions = Target { api_sock }.get("/version")?;
            let running = versions["ballast_version"].as_str().unwrap_or("unknown");
            writeln!(out, "running: Ballast v{running}")?;
        }
        Ok(())
    }
}

/// Prints `value` on `out`, indented.
pub(super) fn print_json(out: &mut impl Write, value: &Value) -> Result<(), CliError> {
    writeln!(out, "{value:#}")?;
    Ok(())
}
