// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a configuration to a machine whose first instruction is the next thing to happen.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::balloon::{Balloon, BalloonError, MemoryReclaim, TimerRunner};
use devices::display::{Headless, Size};
use devices::gpu::{AnonymousMemory, Gpu, GpuParts, GpuSettings, Limits, ModeError};
use devices::legacy::{KeyboardController, PowerRegisters, PowerRequest, SerialPort};
use devices::transport::MmioTransport;
use devices::virtio::{Runner, SharedDevice, SharedRegion};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use linux_loader::cmdline::{self, Cmdline};
use mm::backing;
use mm::guest_ram::{GuestRam, GuestRamError};
use mm::layout::{LayoutError, MemoryLayout};
use mm::units::Bytes;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::acpi::{self, AcpiError, MmioWindow};
use crate::arch::cpuid::{self, Features, Topology};
use crate::arch::handover::{self, Handover, HandoverError};
use crate::arch::kernel::{self, Entry, KernelError, LoadedKernel};
use crate::arch::layout;
use crate::arch::memory_map::memory_map;
use crate::arch::registers::{self, RegisterError};
use crate::bus::{Bus, BusDevice, BusError};
use crate::config::{BackingKind, ConsoleConfig, VmConfig};
use crate::console;
use crate::event_loop::{EventLoopError, LoopHandle, Subscriber};
use crate::exit::{ExitReason, ExitSignal, ResetSource};
use crate::host_window::KvmWindow;
use crate::irq::{self, IrqError, Lines};
use crate::kvm::{self, KvmError};
use crate::memory::{self, SlotError};
use crate::vcpu::{Surroundings, Vcpu};
use crate::vm::{Parts, Screens, Vm};
use crate::vnc::{VncError, VncSocket};

/// The kernel option that turns ACPI off, and the fallback for device discovery on.
const ACPI_OFF: &str = "acpi=off";

/// Why there is no machine. Each says in one line what is wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nothing to boot was configured.
    #[error("no kernel is configured")]
    NoBootSource,
    /// Memory of such a size cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The host does not give the memory.
    #[error(transparent)]
    Ram(#[from] GuestRamError),
    /// The host has no KVM for us.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused a part of the machine.
    #[error("KVM cannot {what}: {source}")]
    Machine {
        /// What was to be done.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than this KVM has.
    #[error("{asked} vCPUs are more than the {limit} that KVM has on this host")]
    TooManyVcpus {
        /// vCPUs configured.
        asked: u8,
        /// KVM's limit.
        limit: usize,
    },
    /// KVM refused guest memory.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Interrupt lines or notifications could not be had.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Two devices want the same addresses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// An eventfd could not be had.
    #[error("cannot create an event: {0}")]
    Event(io::Error),
    /// The console's output cannot be opened.
    #[error("cannot open the console's output {}: {source}", path.display())]
    ConsoleOutput {
        /// The file, or a word for the terminal.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The terminal cannot be put into raw mode.
    #[error("cannot take the terminal for the console: {0}")]
    ConsoleInput(io::Error),
    /// The balloon cannot be made as configured.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The display cannot be made as configured.
    #[error("gpu: {0}")]
    Gpu(#[from] ModeError),
    /// Nobody could look at the display.
    #[error(transparent)]
    Vnc(#[from] VncError),
    /// Kernel or initrd cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line cannot be used.
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::Error),
    /// The command line is longer than a kernel reads.
    #[error("kernel command line cannot be written: {0}")]
    CmdlineLoad(linux_loader::loader::Error),
    /// Boot structures do not fit.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A vCPU does not take its first state.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// The event loop takes no subscribers.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
}

fn machine(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Machine { what, source }
}

/// Builds the machine that `config` describes. Its devices join the event loop behind `events`
/// last of all, so that a failure leaves nothing behind there; its vCPUs wait for [`Vm::start`].
pub fn build(config: &VmConfig, events: &LoopHandle) -> Result<Vm, BuildError> {
    // 1. RAM, laid out around the hole below 4 GiB. Nothing of it is allocated yet.
    let ram = Arc::new(reserve_ram(config)?);

    // 2. A machine without devices: interrupt controllers, timer, RAM.
    let kvm = kvm::open()?;
    let vm = Arc::new(create_vm(&kvm)?);
    // SAFETY: `Vm` holds `ram` and drops it after vCPUs and VM, and so does the GPU's window,
    // which is the only other holder; before there is one, both are locals here and `ram` is the
    // older, so dropped later.
    unsafe { memory::map_ram(&vm, &ram)? };

    // 3. Devices, on the buses that vCPUs look them up on.
    let mut devices = DeviceSet::default();
    let keyboard = devices.add_legacy(&vm, config, events.exit())?;
    let balloon = devices.add_balloon(&vm, config, &ram)?;
    let gpu = devices.add_gpu(&vm, config, &ram)?;

    // 4. Kernel and initrd, and what the kernel is told.
    let kernel = load_boot_files(config, &ram, &devices.windows)?;

    // 5. vCPUs, the first of them at the kernel's first instruction.
    let around = Surroundings {
        ports: Arc::new(devices.ports),
        mmio: Arc::new(devices.mmio),
        exit: Arc::clone(events.exit()),
    };
    let vcpus = create_vcpus(&kvm, &vm, config, &ram, &kernel, &around)?;

    // 6. From here on nothing can fail but the loop itself.
    for subscriber in devices.subscribers {
        events.add(subscriber)?;
    }
    Ok(Vm::new(Parts { vcpus, keyboard, balloon, gpu, fd: vm, ram }))
}

/// A count of MiB; more than fits is more than any layout takes.
fn mib(count: u64) -> Bytes {
    Bytes::from_mib(count).unwrap_or(Bytes(u64::MAX))
}

fn reserve_ram(config: &VmConfig) -> Result<GuestRam, BuildError> {
    let layout =
        MemoryLayout::new(mib(config.machine_config.mem_size_mib), mib(config.memory.cma_mib))?;
    let kind = match config.backing() {
        BackingKind::Thp => backing::BackingKind::Thp,
        BackingKind::Small => backing::BackingKind::Small,
        BackingKind::Memfd => backing::BackingKind::Memfd,
        BackingKind::Hugetlb2M => backing::BackingKind::Hugetlb2M,
        BackingKind::Hugetlb1G => backing::BackingKind::Hugetlb1G,
    };
    Ok(GuestRam::new(layout, kind)?)
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let vm = kvm.create_vm().map_err(machine("create a virtual machine"))?;
    // The order is KVM's: both addresses before the first vCPU, the interrupt controllers before
    // the timer.
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(machine("place the identity map page"))?;
    vm.set_tss_address(layout::TSS).map_err(machine("place the TSS pages"))?;
    vm.create_irq_chip().map_err(machine("create interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(machine("create the interval timer"))?;
    Ok(vm)
}

/// Devices as they are put together.
#[derive(Default)]
struct DeviceSet {
    ports: Bus,
    mmio: Bus,
    lines: Lines,
    windows: Vec<MmioWindow>,
    subscribers: Vec<Subscriber>,
}

impl DeviceSet {
    /// Serial port, keyboard controller and power registers.
    fn add_legacy(
        &mut self,
        vm: &VmFd,
        config: &VmConfig,
        exit: &Arc<ExitSignal>,
    ) -> Result<Arc<KeyboardController>, BuildError> {
        let serial = Arc::new(open_serial(&config.console)?);
        irq::connect(vm, serial.irq(), layout::IRQ_SERIAL)?;
        self.port(layout::PORT_SERIAL, layout::PORT_SERIAL_LEN, serial.clone())?;
        if config.console == ConsoleConfig::Tty {
            let input = console::Input::new(serial, Arc::clone(exit));
            self.subscribers.push(Box::new(input.map_err(BuildError::ConsoleInput)?));
        }

        let on_reset = Arc::clone(exit);
        let keyboard = Arc::new(KeyboardController::new(event()?, move || {
            on_reset.raise(ExitReason::Reset(ResetSource::KeyboardController));
        }));
        irq::connect(vm, keyboard.irq(), layout::IRQ_KEYBOARD)?;
        self.port(layout::PORT_KEYBOARD, layout::PORT_KEYBOARD_LEN, keyboard.clone())?;

        let on_request = Arc::clone(exit);
        let power = PowerRegisters::new(move |request| {
            on_request.raise(match request {
                PowerRequest::Off => ExitReason::PowerOff,
                PowerRequest::Reset => ExitReason::Reset(ResetSource::AcpiRegister),
            });
        });
        self.port(layout::PORT_POWER, layout::PORT_POWER_LEN, Arc::new(power))?;
        Ok(keyboard)
    }

    /// The balloon, if one is configured.
    fn add_balloon(
        &mut self,
        vm: &VmFd,
        config: &VmConfig,
        ram: &Arc<GuestRam>,
    ) -> Result<Option<Arc<Mutex<Balloon>>>, BuildError> {
        let Some(wanted) = &config.balloon else { return Ok(None) };
        let settings = devices::balloon::BalloonConfig {
            target: mib(wanted.amount_mib.into()).as_pages(),
            deflate_on_oom: wanted.deflate_on_oom,
            stats_interval: Duration::from_secs(wanted.stats_polling_interval_s.into()),
            free_page_hinting: wanted.free_page_hinting,
            free_page_reporting: wanted.free_page_reporting,
            blocks: wanted.blocks,
            evacuation: wanted.blocks,
        };
        let reclaim: Box<dyn MemoryReclaim> = Box::new(Arc::clone(ram));
        let balloon = Arc::new(Mutex::new(Balloon::new(settings, reclaim)?));
        self.add_virtio(vm, ram, balloon.clone())?;
        self.subscribers.push(Box::new(TimerRunner::new(Arc::clone(&balloon))));
        Ok(Some(balloon))
    }

    /// The display device, if one is configured.
    fn add_gpu(
        &mut self,
        vm: &Arc<VmFd>,
        config: &VmConfig,
        ram: &Arc<GuestRam>,
    ) -> Result<Option<Screens>, BuildError> {
        let Some(wanted) = &config.gpu else { return Ok(None) };
        let region =
            SharedRegion { addr: ram.layout().windows_start(), len: layout::GPU_WINDOW_SIZE };
        let settings = GpuSettings {
            scanouts: usize::try_from(wanted.scanouts).unwrap_or(usize::MAX),
            mode: Size::new(wanted.width_px, wanted.height_px),
            limits: Limits::default(),
            window: Some(region),
            cma: ram.layout().cma().into_iter().collect(),
        };
        let (display, frames) = Headless::new();
        let parts = GpuParts {
            host_memory: Box::new(AnonymousMemory),
            window: Some(Box::new(KvmWindow::new(region, Arc::clone(vm), Arc::clone(ram)))),
            display: Box::new(display),
        };
        let gpu = Arc::new(Mutex::new(Gpu::new(settings, parts)?));
        self.add_virtio(vm, ram, gpu.clone())?;
        let vnc = match &wanted.vnc_socket {
            Some(path) => Some(VncSocket::open(path, &frames, &gpu)?),
            None => None,
        };
        Ok(Some(Screens { gpu, frames, vnc }))
    }

    /// A virtio device behind the next virtio-mmio window.
    fn add_virtio(
        &mut self,
        vm: &VmFd,
        ram: &GuestRam,
        device: SharedDevice,
    ) -> Result<(), BuildError> {
        let gsi = self.lines.take()?;
        let number = self.windows.len() as u64;
        let base = layout::MMIO_START.0 + number * layout::MMIO_SIZE;
        let transport = MmioTransport::new(Arc::clone(ram.memory()), device, event()?)
            .map(Arc::new)
            .map_err(BuildError::Event)?;
        irq::connect(vm, transport.interrupt().event(), gsi)?;
        for notifier in transport.notifiers() {
            irq::notify(vm, base, notifier)?;
        }
        self.mmio.insert(base, layout::MMIO_SIZE, transport.clone())?;
        // The hole is below 4 GiB, and lines run out before it does.
        self.windows.push(MmioWindow { base: u32::try_from(base).unwrap_or(0), gsi });
        self.subscribers.push(Box::new(Runner::new(transport)));
        Ok(())
    }

    fn port(&mut self, start: u16, len: u16, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        self.ports.insert(start.into(), len.into(), device)
    }
}

fn event() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK).map_err(BuildError::Event)
}

fn open_serial(config: &ConsoleConfig) -> Result<SerialPort, BuildError> {
    let output = console::output(config).map_err(|source| {
        let path = match config {
            ConsoleConfig::File(path) => path.clone(),
            ConsoleConfig::Tty | ConsoleConfig::Null => PathBuf::from("(standard output)"),
        };
        BuildError::ConsoleOutput { path, source }
    })?;
    SerialPort::new(output).map_err(BuildError::Event)
}

/// Loads kernel and initrd, and writes command line, ACPI tables and boot structure.
fn load_boot_files(
    config: &VmConfig,
    ram: &GuestRam,
    windows: &[MmioWindow],
) -> Result<LoadedKernel, BuildError> {
    let boot = config.boot_source.as_ref().ok_or(BuildError::NoBootSource)?;
    let mem = ram.memory().as_ref();
    let kernel = kernel::load_kernel(mem, &boot.kernel_image_path)?;
    let ceiling = ram.layout().cma().map_or(GuestAddress(u64::MAX), |cma| cma.address());
    let initrd = match &boot.initrd_path {
        Some(path) => Some(kernel::load_initrd(mem, &kernel, path, ceiling)?),
        None => None,
    };
    let cmdline = command_line(boot.cmdline(), ram.layout(), windows)?;
    let length = cmdline.as_cstring()?.as_bytes().len();
    linux_loader::loader::load_cmdline(mem, layout::CMDLINE, &cmdline)
        .map_err(BuildError::CmdlineLoad)?;
    let machine = acpi::Machine { cpus: config.machine_config.vcpu_count, windows };
    let rsdp = acpi::write_tables(mem, &machine)?;
    let map = memory_map(mem);
    let handover = Handover {
        initrd,
        map: &map,
        rsdp,
        // Below CMDLINE_MAX, which is the capacity it was built with.
        cmdline_len: u32::try_from(length).unwrap_or(0),
    };
    match kernel.entry {
        Entry::Pvh { .. } => handover::write_start_info(mem, &handover)?,
        Entry::Linux64 { header, .. } => handover::write_zero_page(mem, header, &handover)?,
    }
    Ok(kernel)
}

/// The user's command line and what the machine adds: where contiguous memory is to be reserved,
/// and the devices, for a kernel that is told to look into no ACPI tables.
fn command_line(
    user: &str,
    memory: &MemoryLayout,
    windows: &[MmioWindow],
) -> Result<Cmdline, BuildError> {
    let mut cmdline = match user.trim() {
        "" => Cmdline::new(layout::CMDLINE_MAX)?,
        user => Cmdline::try_from(user, layout::CMDLINE_MAX)?,
    };
    if let Some(cma) = memory.cma() {
        cmdline.insert_str(format!("cma={}@{:#x}", cma.bytes().0, cma.address().0))?;
    }
    if user.split_whitespace().any(|option| option == ACPI_OFF) {
        for window in windows {
            let base = GuestAddress(window.base.into());
            cmdline.add_virtio_mmio_device(layout::MMIO_SIZE, base, window.gsi, None)?;
        }
    }
    Ok(cmdline)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    config: &VmConfig,
    ram: &GuestRam,
    kernel: &LoadedKernel,
    around: &Surroundings,
) -> Result<Vec<Vcpu>, BuildError> {
    let cpus = config.machine_config.vcpu_count;
    let limit = kvm.get_max_vcpus();
    if usize::from(cpus) > limit {
        return Err(BuildError::TooManyVcpus { asked: cpus, limit });
    }
    let topology = Topology {
        cpus,
        threads_per_core: if config.machine_config.smt && cpus > 1 { 2 } else { 1 },
    };
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(machine("tell what CPUID it supports"))?;
    let supported: &[kvm_cpuid_entry2] = supported.as_slice();
    let features = Features {
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        amd: Features::is_amd(supported),
    };
    let mut vcpus = Vec::with_capacity(cpus.into());
    for number in 0..cpus {
        let fd = vm.create_vcpu(number.into()).map_err(machine("create a vCPU"))?;
        let leaves = cpuid::for_vcpu(supported, topology, features, number);
        // Fails for lists longer than KVM's limit only, which it then names itself.
        let leaves = CpuId::from_entries(&leaves[..leaves.len().min(KVM_MAX_CPUID_ENTRIES)])
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
            .map_err(machine("take the CPUID of a vCPU"))?;
        fd.set_cpuid2(&leaves).map_err(machine("take the CPUID of a vCPU"))?;
        registers::setup_common(&fd)?;
        if number == 0 {
            registers::setup_boot(&fd, ram.memory().as_ref(), kernel.entry)?;
        }
        vcpus.push(Vcpu::new(number, fd, around.clone()));
    }
    Ok(vcpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &str, cma_mib: u64) -> String {
        let mib = |n| Bytes::from_mib(n).unwrap();
        let layout = MemoryLayout::new(mib(512), mib(cma_mib)).unwrap();
        let windows = [MmioWindow { base: 0xd000_0000, gsi: 5 }];
        let line = command_line(user, &layout, &windows).unwrap();
        line.as_cstring().unwrap().into_string().unwrap()
    }

    #[test]
    fn command_line_tells_what_tables_do_not() {
        assert_eq!(line("quiet", 0), "quiet");
        assert_eq!(line("quiet", 128), "quiet cma=134217728@0x17c00000");
        assert_eq!(line("acpi=off", 0), "acpi=off virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(
            line("acpi=off -- single", 0),
            "acpi=off virtio_mmio.device=4K@0xd0000000:5 -- single"
        );
        assert_eq!(line("", 0), "");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let layout = MemoryLayout::new(Bytes::from_mib(16).unwrap(), Bytes(0)).unwrap();
        assert!(command_line(&"x".repeat(3000), &layout, &[]).is_err());
    }
}
