// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine with a usable KVM: this one, or an emulated one.
//!
//! The outer machine is QEMU without acceleration, which emulates AMD's SVM, running Debian's own
//! kernel. Its root is an initial RAM disk with the agent, KVM's modules and a payload; so
//! measurements there do not depend on a disk. The host's file tree is shared at `/host`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::error::{Error, IoContext, Result, task_error};
use crate::heartbeat::Heartbeat;
use crate::{paths, rootfs, run, testbed};

/// KVM, how the host's files are reached, what guests' devices are backed by, a disk that fails, a
/// pair of network interfaces, and compressed swap.
const MODULES: [&str; 10] = [
    "kvm_amd",
    "9p",
    "9pnet_virtio",
    "tun",
    "vhost_net",
    "veth",
    "loop",
    "virtio_blk",
    "null_blk",
    "zram",
];
/// Where a job's image is in the outer machine.
const IMAGE_DEVICE: &str = "/dev/vda";
/// SVM and nested paging are what KVM needs.
const CPU: &str = "EPYC,+svm,+npt";
/// QEMU does not intercept XSETBV, so KVM never learns which states a guest switched on and answers
/// CPUID for others; guests then warn and give XSAVE up. Tests run without XSAVE. Benches have it,
/// since Firecracker requires it.
const CPU_WITHOUT_XSAVE: &str = "EPYC,+svm,+npt,-xsave";
/// An instruction takes 2^3 ns. Where all wait for a timer, its time comes at once.
const ICOUNT: &str = "shift=3,sleep=off";
/// The size of QEMU's translated code, in MiB, limits how many translations one page of code has: when
/// instructions are counted, each end of a time slice makes another. A page is cleared 8 bytes at a
/// time, and for each write all translations of that page are searched: of a page that once had much
/// used code, with 1 GiB of them, this took over a minute.
const TCG_COUNTING: &str = "tcg,thread=single,tb-size=128";
/// The program that emulates the machine.
const PROGRAM: &str = "qemu-system-x86_64";
/// The variable that names another one.
const PROGRAM_VARIABLE: &str = "BALLAST_OUTER_QEMU";
/// QEMU ends with status `2 * value + 1` when the guest writes a value to this port.
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=1";

/// Where guests can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine's own KVM.
    Here,
    /// In the outer machine.
    Outer,
}

impl Place {
    /// Chooses, and says which and why.
    pub(crate) fn choose() -> Self {
        let (place, why) = Self::find();
        eprintln!("{why}");
        place
    }

    /// Where guests can run, and why there.
    pub(crate) fn find() -> (Self, &'static str) {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let virtualisation = flags
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        match (virtualisation, usable) {
            (true, true) => {
                (Self::Here, "guests run here: this CPU virtualises, and /dev/kvm can be opened")
            }
            (false, _) => {
                let why =
                    "guests run in the emulated outer machine: no vmx or svm in /proc/cpuinfo";
                (Self::Outer, why)
            }
            (true, false) => {
                (Self::Outer, "guests run in the emulated outer machine: /dev/kvm cannot be opened")
            }
        }
    }
}

/// A file of the payload: its path inside, and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) path: String,
    pub(crate) from: PathBuf,
}

/// How large an outer machine is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Its CPUs. With one, QEMU's emulation is sound and hardly slower: its faults are between
    /// CPUs. What is measured needs one for the guest and one for its monitor.
    pub(crate) cpus: u32,
    /// Its memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Whether its CPUs have XSAVE.
    pub(crate) xsave: bool,
    /// What its time passes by.
    pub(crate) clock: Clock,
}

/// What time passes by in the outer machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The time of this machine: what other programs take of it looks like slowness there.
    Host,
    /// The instructions of its one CPU: what was measured once comes out again, however busy this
    /// machine is.
    Instructions,
}

impl Size {
    /// For guest tests: room for a guest of 5 GiB.
    pub(crate) const TESTS: Self =
        Self { cpus: 1, memory_mib: 8192, xsave: false, clock: Clock::Host };
}

impl Clock {
    /// QEMU's options for it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["-accel", "tcg,thread=multi"],
            Self::Instructions => &["-accel", TCG_COUNTING, "-icount", ICOUNT, "-rtc", "clock=vm"],
        }
    }
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) argv: Vec<OsString>,
    /// Run in the host's file tree, in this folder, instead of on the RAM disk.
    pub(crate) in_host_tree: Option<PathBuf>,
    /// Files to put on the RAM disk.
    pub(crate) payload: Vec<Item>,
    /// A large file that is only read: a disk of the machine, with this link to it.
    pub(crate) image: Option<Item>,
    /// The outer machine.
    pub(crate) size: Size,
    /// The outer machine is ended when this has passed.
    pub(crate) limit: Duration,
    /// Where the outer kernel's console goes.
    pub(crate) log: PathBuf,
}

/// How often a job is tried where the outer machine itself crashes. Guest tests continue where they
/// stopped, so this is the total number of crashes that they survive.
const TRIES: u32 = 12;

/// Runs `job` in the outer machine; gives its exit status (127 for any above).
///
/// QEMU's emulation of several CPUs with SVM has faults: once in many boots, or in a quarter of an
/// hour with guests, the outer kernel gets a spurious exception and panics. Such a job is
/// restarted.
pub(crate) fn run(job: &Job, agent: &Path) -> Result<u8> {
    let mut tried = 1;
    loop {
        match run_once(job, agent)? {
            Ended::Status(status) => return Ok(status),
            Ended::Crashed(how) if tried < TRIES => {
                let kept = job.log.with_extension(format!("crash-{tried}.log"));
                fs::rename(&job.log, &kept).doing("keeping", &job.log)?;
                eprintln!("{how}: {}; retrying", kept.display());
                tried += 1;
            }
            Ended::Crashed(how) => return task_error(format!("{how}: {}", job.log.display())),
        }
    }
}

/// How the outer machine ended.
enum Ended {
    /// The job ended with this status.
    Status(u8),
    /// Its kernel panicked or hung.
    Crashed(String),
}

fn run_once(job: &Job, agent: &Path) -> Result<Ended> {
    let stock = testbed::prepare()?;
    let work = tempfile::tempdir().doing("creating a folder in", std::env::temp_dir())?;
    let initrd = work.path().join("initrd");
    let alive = work.path().join("alive");
    fs::write(&alive, "").doing("creating", &alive)?;
    rootfs::write(&initrd, agent, &stock.modules(&MODULES)?, |disk| {
        let words: Vec<_> = job.argv.iter().map(|word| word.as_encoded_bytes()).collect();
        disk.bytes("etc/outer/argv", 0o644, &words.join(&0))?;
        let mut alive_there = OsString::from("/host");
        alive_there.push(&alive);
        disk.bytes("etc/outer/alive", 0o644, alive_there.as_encoded_bytes())?;
        if let Some(dir) = &job.in_host_tree {
            disk.bytes("etc/outer/chroot", 0o644, dir.as_os_str().as_encoded_bytes())?;
        }
        for item in &job.payload {
            disk.file(&item.path, 0o755, &item.from)?;
        }
        if let Some(image) = &job.image {
            disk.link(&image.path, IMAGE_DEVICE)?;
        }
        Ok(())
    })?;
    if let Some(dir) = job.log.parent() {
        fs::create_dir_all(dir).doing("creating", dir)?;
    }
    let errors = errors_of(&job.log);
    let mut machine = qemu(job, &stock.image, &initrd);
    end_with_this_thread(&mut machine);
    let mut child = machine
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&errors).doing("creating", &errors)?)
        .spawn()
        .map_err(|source| Error::Spawn { program: program().display().to_string(), source })?;
    let output = child.stdout.take();
    let lines = std::thread::spawn(move || output.map(|output| run::pass_on(output, |_| ())));
    let started = Instant::now();
    let mut heartbeat = Heartbeat::new(job.size.clock, child.id());
    let status = loop {
        if let Some(status) = child.try_wait().doing("waiting for", PROGRAM)? {
            // Only QEMU had the other end.
            let _ = lines.join();
            break status;
        }
        if heartbeat.has_stopped(&alive) {
            end(&mut child)?;
            return Ok(Ended::Crashed("the outer machine stood still; its console".into()));
        }
        if started.elapsed() > job.limit {
            end(&mut child)?;
            return task_error(format!(
                "the outer machine did not end within {} s; its console: {}",
                job.limit.as_secs(),
                job.log.display()
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // An even status, or 1, is QEMU's own: the device gives odd ones, and the agent adds one. Zero is
    // a reset (-no-reboot), and only a panic resets this machine.
    match status.code() {
        Some(code @ 3..=255) if code % 2 == 1 => {
            Ok(Ended::Status(u8::try_from(code / 2 - 1).unwrap_or(127)))
        }
        Some(0) => Ok(Ended::Crashed("the outer machine crashed; its console".into())),
        _ => task_error(format!(
            "the outer machine ended by itself ({status}); its console: {}; QEMU's words: {}",
            job.log.display(),
            errors.display()
        )),
    }
}

/// Makes the kernel kill the process of `command` when the calling thread, which waits for it,
/// ends: a killed xtask leaves no machine behind.
fn end_with_this_thread(command: &mut Command) {
    let parent = Some(rustix::process::getpid());
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before the call, which then says nothing.
        if rustix::process::getppid() == parent { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made, and no memory is allocated.
    unsafe { command.pre_exec(tie) };
}

/// Kills the outer machine.
fn end(child: &mut Child) -> Result<()> {
    child.kill().doing("ending", PROGRAM)?;
    child.wait().doing("waiting for", PROGRAM)?;
    Ok(())
}

/// The QEMU to use.
fn program() -> OsString {
    std::env::var_os(PROGRAM_VARIABLE).unwrap_or_else(|| PROGRAM.into())
}

fn qemu(job: &Job, kernel: &Path, initrd: &Path) -> Command {
    let mut qemu = Command::new(program());
    let log = format!("file:{}", job.log.display());
    let cpu = if job.size.xsave { CPU } else { CPU_WITHOUT_XSAVE };
    qemu.args(["-machine", "pc,usb=off,vmport=off"])
        .args(job.size.clock.arguments())
        .args(["-cpu", cpu, "-smp", &job.size.cpus.to_string()])
        .args(["-m", &format!("{}M", job.size.memory_mib)])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 oops=panic panic=-1 quiet loglevel=4 nokaslr random.trust_cpu=on",
        ])
        .args(["-serial", &log, "-device", EXIT_DEVICE])
        .args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=out,signal=off"])
        .args(["-device", "virtconsole,chardev=out", "-device", "virtio-rng-pci"])
        .args(["-fsdev", "local,id=host,path=/,security_model=none,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
        .stdin(Stdio::null());
    if let Some(image) = &job.image {
        let drive =
            format!("if=none,id=image,format=raw,readonly=on,file={}", image.from.display());
        qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=image"]);
    }
    qemu
}

/// What QEMU says of itself goes beside the console: it warns of every feature of the CPU model
/// that it cannot emulate.
fn errors_of(log: &Path) -> PathBuf {
    log.with_extension("qemu")
}

/// `cargo xtask outer -- COMMAND`: runs a command with the host's files in sight, here or in the
/// outer machine.
pub(crate) fn run_command(words: &[OsString], size: Size, limit: Duration) -> Result<u8> {
    let dir = std::env::current_dir().doing("looking for", "the current folder")?;
    if Place::choose() == Place::Here {
        let status = Command::new(&words[0])
            .args(&words[1..])
            .status()
            .map_err(|source| Error::Spawn { program: words[0].display().to_string(), source })?;
        return Ok(u8::try_from(status.code().unwrap_or(127)).unwrap_or(127));
    }
    let agent = crate::build::agent()?;
    let job = Job {
        argv: words.to_vec(),
        in_host_tree: Some(dir),
        payload: Vec::new(),
        image: None,
        size,
        limit,
        log: paths::target().join("guest/outer.log"),
    };
    run(&job, &agent)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn a_program_ends_with_the_thread_that_waits_for_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; exec sleep 600"]).stdout(Stdio::piped());
        let spawn = move || {
            end_with_this_thread(&mut command);
            command.spawn().unwrap()
        };
        // This thread ends as soon as it has started the program, as one of a killed process does.
        let mut child = std::thread::spawn(spawn).join().unwrap();
        let mut line = String::new();
        // It may have been killed before it could say so.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    }
}
