// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask tap`: a TAP interface of the host for the guests of `resources/*.json`: created for
//! a user who may then start guests without privileges, given an address, and, if asked for, a way
//! to other networks by NAT.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Result, task_error};
use crate::{apt, run};

/// The interface that the configurations in `resources/` name.
const NAME: &str = "ballast0";
/// The host's end of the network that their command lines name.
const ADDRESS: &str = "172.30.0.1/30";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Create it or remove it
    action: Action,
    /// Name of the interface
    #[arg(long, default_value = NAME)]
    name: String,
    /// The host's address in it
    #[arg(long, value_name = "ADDRESS/BITS", default_value = ADDRESS)]
    address: String,
    /// The user who may attach a guest to it; by default the caller of sudo
    #[arg(long, env = "SUDO_USER")]
    user: Option<String>,
    /// Forward the guest's packets to the host's other networks, with NAT
    #[arg(long)]
    nat: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// Create it
    Up,
    /// Remove it
    Down,
}

/// Creates or removes the interface.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return task_error("a network interface needs root: start it with sudo");
    }
    apt::ensure("the network interface", &["iproute2"])?;
    match options.action {
        Action::Up => up(options),
        Action::Down => down(options),
    }
}

fn up(options: &Options) -> Result<()> {
    let name = options.name.as_str();
    let mut create = vec!["tuntap", "add", "dev", name, "mode", "tap"];
    if let Some(user) = &options.user {
        create.extend(["user", user]);
    }
    ip(&create)?;
    let configured = ip(&["addr", "add", &options.address, "dev", name])
        .and_then(|()| ip(&["link", "set", name, "up"]))
        .and_then(|()| if options.nat { nat(options) } else { Ok(()) });
    if configured.is_err() {
        // Remove a partial result; report the first error.
        let _ = down(options);
    }
    configured
}

fn down(options: &Options) -> Result<()> {
    if run::in_path("nft") {
        // There is a table only where NAT was asked for.
        let table = table(&options.name);
        let _ = run::quiet(Command::new("nft").args(["delete", "table", "ip", &table]));
    }
    ip(&["link", "delete", &options.name])
}

fn ip(words: &[&str]) -> Result<()> {
    run::quiet(Command::new("ip").args(words))
}

/// Name of our table of nftables rules.
fn table(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("ballast_{}", name.chars().map(word).collect::<String>())
}

fn nat(options: &Options) -> Result<()> {
    apt::ensure("NAT", &["nftables"])?;
    fs::write(FORWARDING, "1").doing("writing", FORWARDING)?;
    let rules = rules(&options.name, &options.address);
    let spawn = |source| Error::Spawn { program: "nft".into(), source };
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().map_err(spawn)?;
    // nft reads to the end of its input, which the drop closes.
    nft.stdin
        .take()
        .into_iter()
        .try_for_each(|mut input| input.write_all(rules.as_bytes()))
        .doing("writing to", "nft")?;
    let status = nft.wait().doing("waiting for", "nft")?;
    if status.success() { Ok(()) } else { task_error(format!("nft failed ({status})")) }
}

/// Packets from the guest's network that leave by another interface get the host's address.
fn rules(name: &str, address: &str) -> String {
    let table = table(name);
    format!(
        "table ip {table} {{\n\
         \x20 chain out {{\n\
         \x20   type nat hook postrouting priority srcnat;\n\
         \x20   ip saddr {address} oifname != \"{name}\" masquerade\n\
         \x20 }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::{rules, table};

    #[test]
    fn rules_name_the_interface_and_its_network() {
        let rules = rules("tap-1", "10.0.0.1/24");
        assert!(rules.starts_with("table ip ballast_tap_1 {"), "{rules}");
        assert!(rules.contains("ip saddr 10.0.0.1/24 oifname != \"tap-1\" masquerade"), "{rules}");
        assert_eq!(table("a\";x"), "ballast_a__x");
    }
}
