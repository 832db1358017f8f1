// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor: KVM, the machine around it, and the doors to it (command line and API).
//!
//! The only crate that links KVM. The folders, from the bottom up:
//!
//! - `kvm`, `arch`, `vcpu`: the hypervisor's interface, the first instruction, the threads
//! - `host`: files, sockets, terminal and log: everything outside that could block or vanish
//! - `machine`: a configuration becomes a machine, a device a file
//! - `compactor`, `block_view`: guest memory is put in order, and drawn
//! - `parking`: guest memory is compressed into a pool, and brought back
//! - `pressure`: automatic reclaim and return of memory, by the needs of host and guest
//! - `config`: the configuration of a machine
//! - `mmds`: the metadata service that the guest reads from
//! - `api`, `control`: requests over HTTP; their effects on the machine
//! - `cli`: the command line, one file a subcommand
//!
//! Other files: `launch` runs one monitor, `event_loop` is its main thread, `exit` the reason of
//! its end, `signals` the thread that handles signals, `ending_signals` those that end it;
//! `console` is the host's side of the serial port, `metrics` the metrics file, `mode` the
//! differences in Firecracker mode, `own_memory` the release of memory used at start-up, `one_line`
//! text from outside in a message.
//!
//! # Example
//!
//! Boots a guest from a kernel and prints why it ended (needs `/dev/kvm`):
//!
//! ```no_run
//! use vmm::config::{HostLimits, VmConfig};
//! use vmm::event_loop::EventLoop;
//! use vmm::mmds::{DEFAULT_LIMIT, Mmds};
//! use vmm::mode::StartMode;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config: VmConfig = vmm::config::from_slice(
//!     br#"{
//!         "machine-config": {"vcpu_count": 2, "mem_size_mib": 512},
//!         "boot-source": {"kernel_image_path": "vmlinux", "initrd_path": "initrd"},
//!         "balloon": {"amount_mib": 0, "deflate_on_oom": true}
//!     }"#,
//! )?;
//! config.validate(&HostLimits::read())?;
//! let mut events = EventLoop::new()?;
//! let mut vm = vmm::machine::build(&config, &events.handle(), &Mmds::new(DEFAULT_LIMIT))?;
//! vm.start(StartMode::Ballast)?;
//! println!("{:?}", events.run());
//! # Ok(())
//! # }
//! ```

pub mod api;
pub mod arch;
pub mod block_view;
pub mod cli;
pub mod compactor;
pub mod config;
pub mod console;
pub mod control;
mod ending_signals;
pub mod event_loop;
pub mod exit;
pub mod host;
pub mod kvm;
pub mod launch;
pub mod machine;
pub mod metrics;
pub mod mmds;
pub mod mode;
mod one_line;
mod own_memory;
pub mod parking;
pub mod pressure;
pub mod signals;
pub mod vcpu;
