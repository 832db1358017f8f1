// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor: KVM, the machine around it, and the doors to it (command line and API).
//!
//! The only crate that links KVM. The machine: `builder` makes a `vm::Vm` of a configuration;
//! `vm`, `vcpu`, `memory`, `host_window`, `bus`, `irq` and `arch` are its parts. Around it:
//! `event_loop` is what the main thread does, `exit` why it ends, `signals` one way of asking for
//! that. Doors to it: `config` says what a machine is to be, `cli` makes one of arguments, `launch`
//! runs it, `api` takes requests over HTTP and turns them into actions, `control` does those,
//! `compactor` puts memory in order, `block_view` draws it, `vnc` lets a person watch the guest.
//! Watching it all: `logging`, `metrics`.

pub mod api;
pub mod arch;
pub mod block_view;
pub mod builder;
pub mod bus;
pub mod cli;
pub mod compactor;
pub mod config;
pub mod console;
pub mod control;
pub mod event_loop;
pub mod exit;
pub mod host_window;
pub mod irq;
pub mod kvm;
pub mod launch;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod signals;
pub mod terminal;
pub mod vcpu;
pub mod vm;
pub mod vnc;
