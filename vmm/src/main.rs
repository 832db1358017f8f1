// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast`: runs a virtual machine, or speaks to one that runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::cli::main(std::env::args_os())
}
