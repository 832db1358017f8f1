// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first process of the machines that tests run in, in one of two roles:
//! - in a guest, it takes commands over the serial console (`commands/`);
//! - in the outer machine, it runs one program and reports its exit status (`outer.rs`).
//!
//! Started again by itself, it is what stands by when memory runs out (`bystander.rs`).
//!
//! It is one static program, so that an initial RAM disk needs nothing else. Files:
//! - `init.rs`     mounts, kernel modules, power
//! - `outer.rs`    the role in the outer machine
//! - `idle_vm.rs`  a virtual machine that keeps KVM from patching its own code
//! - `pulse.rs`    what keeps the outer machine going
//! - `console.rs`  requests in, answers out
//! - `drm/`        the GPU, as its clients use it
//! - `region.rs`   memory with a pattern that can be checked
//! - `commands/`   what a guest can be asked to do

mod bystander;
mod commands;
mod console;
mod drm;
mod idle_vm;
mod init;
mod outer;
mod pulse;
mod region;

use std::io;

fn main() {
    // What the kernel hands its first process are words of its command line that it did not know.
    if !rustix::process::getpid().is_init() {
        return bystander();
    }
    if let Err(error) = run() {
        eprintln!("ballast-agent: {error}");
    }
    // The first process must never return: the kernel would panic.
    init::power_off();
}

fn run() -> io::Result<()> {
    init::mount_basics()?;
    init::load_modules()?;
    init::mount_debug();
    match outer::Task::read()? {
        Some(task) => task.run(),
        None => serve(),
    }
}

/// The role beside the first process.
fn bystander() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.as_slice() {
        [role, size] if role == "bystander" => bystander::run(size),
        _ => Err(io::Error::other("this is the first process of a test's machine")),
    };
    if let Err(error) = done {
        eprintln!("ballast-agent: {error}");
        std::process::exit(1);
    }
}

/// The role in a guest.
fn serve() -> io::Result<()> {
    init::allow_open_files()?;
    let mut console = console::Console::open()?;
    let mut state = commands::State::default();
    console.announce()?;
    loop {
        let request = console.next_request()?;
        let answer = commands::perform(&mut state, &request.words);
        console.answer(request.id, answer)?;
    }
}
