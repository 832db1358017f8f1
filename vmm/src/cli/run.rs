// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast run`: builds a configuration from flags. With a configuration file, each flag overrides
//! the file's setting.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

use super::error::CliError;
use super::values::{Pieces, SizeMib, read_metadata, width_and_height};
use crate::api::server::DEFAULT_MAX_PAYLOAD_BYTES;
use crate::config::{
    BalloonConfig, BootSource, CacheType, ConsoleConfig, DriveConfig, GpuConfig, ImageFormat,
    IoEngine, LogLevel, LoggerConfig, MemoryConfig, MetricsConfig, MmdsConfig, MmdsVersion,
    NetBackend, NetworkInterfaceConfig, PolicyConfig, VhostChoice, VmConfig, VsockConfig, drives,
    network_interfaces,
};
use crate::launch::{DEFAULT_ID, Launch};
use crate::mode::StartMode;

#[derive(Debug, Args)]
#[allow(rustdoc::broken_intra_doc_links, reason = "brackets of the help text are no links")]
pub(super) struct RunArgs {
    /// Kernel to boot: ELF vmlinux or bzImage
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    kernel: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: SIZE[,backing=thp|small|memfd|hugetlb-2m|hugetlb-1g][,cma=SIZE][,host-budget=SIZE][,host-mappings=N][,policy=gentle|dense]
    #[arg(long, value_name = "SPEC")]
    memory: Option<MemorySpec>,
    /// Balloon: target=SIZE[,deflate-on-oom][,stats=SECONDS][,hinting][,reporting][,no-blocks]
    #[arg(long, value_name = "SPEC")]
    balloon: Option<BalloonSpec>,
    /// Display: WIDTHxHEIGHT[,scanouts=N]
    #[arg(long, value_name = "SPEC")]
    gpu: Option<GpuSpec>,
    /// Disk: path=PATH[,id=NAME][,root][,ro][,format=raw|qcow2][,backing-files][,cache=unsafe|writeback]
    /// [,engine=sync|async][,queues=N]; may be given several times
    #[arg(long, value_name = "SPEC")]
    disk: Vec<DiskSpec>,
    /// Network interface: tap=NAME[,queues=N][,vhost=off|auto|on], or user[,tcp=PORT:PORT] for passt
    /// without privileges; both with [,id=NAME][,mac=ADDRESS][,mtu=N]; may be given several times
    #[arg(long, value_name = "SPEC")]
    net: Vec<NetSpec>,
    /// Vsock device: cid=N,path=SOCKET
    #[arg(long, value_name = "SPEC")]
    vsock: Option<VsockSpec>,
    /// Metadata for the guest, a JSON file; unless a configuration file has mmds-config, all
    /// network interfaces serve it to requests with a token
    #[arg(long, value_name = "PATH")]
    mmds_file: Option<PathBuf>,
    /// Add a virtio entropy device
    #[arg(long)]
    rng: bool,
    /// Serial console: tty, pty, socket=PATH, file=PATH or null
    #[arg(long, value_name = "SPEC")]
    console: Option<ConsoleSpec>,
    /// Serve the API on this Unix socket
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Configuration file; flags override it
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Name of this machine in the API and in metrics
    #[arg(long, value_name = "NAME", default_value = DEFAULT_ID)]
    id: String,
    /// Log level
    #[arg(long, value_name = "LEVEL", ignore_case = true)]
    log_level: Option<LogLevel>,
    /// Log to this file or FIFO instead of standard error
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    /// Write metrics to this file or FIFO, every minute and at the end
    #[arg(long, value_name = "PATH")]
    metrics_file: Option<PathBuf>,
    /// Add the CPU time of lock holds and event-loop turns to the metrics; for measurements, as it
    /// costs system calls
    #[arg(long)]
    count_cpu_time: bool,
    /// Accepted for scripts without effect: there are no seccomp filters yet
    #[arg(long)]
    no_seccomp: bool,
}

impl RunArgs {
    pub(super) fn into_launch(self) -> Result<Launch, CliError> {
        let mut config = match &self.config {
            Some(path) => VmConfig::read(path)?,
            None => VmConfig::default(),
        };
        if let Some(kernel_image_path) = self.kernel {
            let boot_args = config.boot_source.and_then(|boot| boot.boot_args);
            config.boot_source =
                Some(BootSource { kernel_image_path, initrd_path: self.initrd, boot_args });
        }
        if let (Some(cmdline), Some(boot)) = (self.cmdline, &mut config.boot_source) {
            boot.boot_args = Some(cmdline);
        }
        if let Some(cpus) = self.cpus {
            config.machine_config.vcpu_count = cpus;
        }
        if let Some(memory) = self.memory {
            config.machine_config.mem_size_mib = memory.size.0;
            config.memory = memory.config;
        }
        if let Some(BalloonSpec(balloon)) = self.balloon {
            config.balloon = Some(balloon);
        }
        if let Some(GpuSpec(gpu)) = self.gpu {
            config.gpu = Some(gpu);
        }
        for (number, DiskSpec(disk)) in self.disk.into_iter().enumerate() {
            let drive_id = match disk.drive_id.is_empty() {
                true => format!("disk{number}"),
                false => disk.drive_id.clone(),
            };
            drives::set(&mut config.drives, DriveConfig { drive_id, ..disk });
        }
        for (number, NetSpec(interface)) in self.net.into_iter().enumerate() {
            let iface_id = match interface.iface_id.is_empty() {
                true => format!("eth{number}"),
                false => interface.iface_id.clone(),
            };
            let interface = NetworkInterfaceConfig { iface_id, ..interface };
            network_interfaces::set(&mut config.network_interfaces, interface);
        }
        if let Some(VsockSpec(vsock)) = self.vsock {
            config.vsock = Some(vsock);
        }
        let metadata = self.mmds_file.as_deref().map(read_metadata).transpose()?;
        if metadata.is_some() {
            let interfaces = &config.network_interfaces;
            config.mmds_config.get_or_insert_with(|| MmdsConfig {
                version: MmdsVersion::V2,
                network_interfaces: interfaces.iter().map(|i| i.iface_id.clone()).collect(),
                ipv4_address: None,
                imds_compat: false,
            });
        }
        if self.rng {
            config.entropy.get_or_insert_default();
        }
        if let Some(ConsoleSpec(console)) = self.console {
            config.console = console;
        }
        Ok(Launch {
            id: self.id,
            config: Some(config),
            logger: LoggerConfig {
                log_path: self.log_file,
                level: self.log_level,
                ..LoggerConfig::default()
            },
            metrics: self.metrics_file.map(MetricsConfig::to_file),
            api_sock: self.api_sock,
            max_payload_bytes: DEFAULT_MAX_PAYLOAD_BYTES,
            count_cpu_time: self.count_cpu_time,
            metadata,
            mmds_size_limit: None,
            seccomp: !self.no_seccomp,
            mode: StartMode::Ballast,
            start_time_us: None,
            ignored: Vec::new(),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct MemorySpec {
    size: SizeMib,
    config: MemoryConfig,
}

impl FromStr for MemorySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let size = pieces.take_first()?.parse()?;
        let backing = pieces.take("backing")?.map(|Named(kind)| kind);
        let SizeMib(cma_mib) = pieces.take("cma")?.unwrap_or(SizeMib(0));
        let mut config = MemoryConfig { backing, cma_mib, ..MemoryConfig::default() };
        if let Some(SizeMib(mib)) = pieces.take("host-budget")? {
            config.host_budget_mib = mib;
        }
        config.host_mappings = pieces.take("host-mappings")?;
        if let Some(threads) = pieces.take("host-threads")? {
            config.host_threads = threads;
        }
        if let Some(Named(preset)) = pieces.take("policy")? {
            config.policy = Some(PolicyConfig { preset, ..PolicyConfig::default() });
        }
        pieces.finish(
            "backing=KIND, cma=SIZE, host-budget=SIZE, host-mappings=N, host-threads=N and policy=PRESET",
        )?;
        Ok(Self { size, config })
    }
}

/// A value that is written as in the JSON form.
struct Named<T>(T);

impl<T: DeserializeOwned> FromStr for Named<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name: StrDeserializer<'_, ValueError> = text.into_deserializer();
        T::deserialize(name).map(Self).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct BalloonSpec(BalloonConfig);

impl FromStr for BalloonSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let balloon = BalloonConfig {
            amount_mib: pieces.take("target")?.unwrap_or(SizeMib(0)).as_u32()?,
            deflate_on_oom: pieces.take_flag("deflate-on-oom")?,
            stats_polling_interval_s: pieces.take("stats")?.unwrap_or(0),
            free_page_hinting: pieces.take_flag("hinting")?,
            free_page_reporting: pieces.take_flag("reporting")?,
            blocks: !pieces.take_flag("no-blocks")?,
        };
        pieces.finish(
            "target=SIZE, deflate-on-oom, stats=SECONDS, hinting, reporting and no-blocks",
        )?;
        Ok(Self(balloon))
    }
}

/// A disk; its name may still be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskSpec(DriveConfig);

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let path: Option<PathBuf> = pieces.take("path")?;
        let disk = DriveConfig {
            drive_id: pieces.take("id")?.unwrap_or_default(),
            is_root_device: pieces.take_flag("root")?,
            partuuid: None,
            is_read_only: pieces.take_flag("ro")?,
            cache_type: match pieces.take::<String>("cache")?.as_deref() {
                // A disk named on the command line is usually kept: default to durable writes.
                None | Some("writeback") => CacheType::Writeback,
                Some("unsafe") => CacheType::Unsafe,
                Some(other) => return Err(format!("cache: `{other}`: give unsafe or writeback")),
            },
            path_on_host: Some(path.ok_or("`path` is missing: path=PATH")?),
            rate_limiter: None,
            io_engine: match pieces.take::<String>("engine")?.as_deref() {
                None | Some("async") => IoEngine::Async,
                Some("sync") => IoEngine::Sync,
                Some(other) => return Err(format!("engine: `{other}`: give sync or async")),
            },
            socket: None,
            format: match pieces.take::<String>("format")?.as_deref() {
                None | Some("raw") => ImageFormat::Raw,
                Some("qcow2") => ImageFormat::Qcow2,
                Some(other) => return Err(format!("format: `{other}`: give raw or qcow2")),
            },
            backing_files: pieces.take_flag("backing-files")?,
            queues: pieces.take("queues")?.unwrap_or(1),
        };
        pieces.finish(
            "path=PATH, id=NAME, root, ro, format=FORMAT, backing-files, cache=TYPE, engine=ENGINE \
             and queues=N",
        )?;
        Ok(Self(disk))
    }
}

/// A network interface; its name may still be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NetSpec(NetworkInterfaceConfig);

impl FromStr for NetSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let backend = match pieces.take_flag("user")? {
            true => NetBackend::User,
            false => NetBackend::Tap,
        };
        let tap: Option<String> = pieces.take("tap")?;
        if backend == NetBackend::Tap && tap.is_none() {
            return Err("give tap=NAME, or user".into());
        }
        let interface = NetworkInterfaceConfig {
            iface_id: pieces.take("id")?.unwrap_or_default(),
            host_dev_name: tap,
            guest_mac: pieces.take("mac")?,
            mtu: pieces.take("mtu")?,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
            queues: pieces.take("queues")?.unwrap_or(1),
            backend,
            tcp_ports: pieces.take("tcp")?,
            vhost: match pieces.take::<String>("vhost")?.as_deref() {
                None | Some("off") => VhostChoice::Off,
                Some("auto") => VhostChoice::Auto,
                Some("on") => VhostChoice::On,
                Some(other) => return Err(format!("vhost: `{other}`: give off, auto or on")),
            },
        };
        pieces.finish(
            "tap=NAME, user, id=NAME, mac=ADDRESS, mtu=N, queues=N, vhost=CHOICE and \
             tcp=PORT:PORT",
        )?;
        Ok(Self(interface))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct VsockSpec(VsockConfig);

impl FromStr for VsockSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let path: Option<PathBuf> = pieces.take("path")?;
        let vsock = VsockConfig {
            guest_cid: pieces.take("cid")?.unwrap_or(3),
            uds_path: path.ok_or("`path` is missing: path=SOCKET")?,
            vsock_id: None,
        };
        pieces.finish("cid=N and path=SOCKET")?;
        Ok(Self(vsock))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct GpuSpec(GpuConfig);

impl FromStr for GpuSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Pieces::parse(text)?;
        let size = pieces.take_first()?;
        let (width, height) = width_and_height(size)?;
        let gpu = GpuConfig {
            width_px: width,
            height_px: height,
            scanouts: pieces.take("scanouts")?.unwrap_or(1),
            vnc_socket: pieces.take("vnc")?,
        };
        pieces.finish("scanouts=N and vnc=PATH")?;
        Ok(Self(gpu))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ConsoleSpec(ConsoleConfig);

impl FromStr for ConsoleSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text.split_once('=') {
            None if text == "tty" => ConsoleConfig::Tty,
            None if text == "pty" => ConsoleConfig::Pty,
            None if text == "null" => ConsoleConfig::Null,
            Some(("file", path)) if !path.is_empty() => ConsoleConfig::File(path.into()),
            Some(("socket", path)) if !path.is_empty() => ConsoleConfig::Socket(path.into()),
            _ => {
                let valid = "tty, pty, socket=PATH, file=PATH or null";
                return Err(format!("invalid console `{text}`: give {valid}"));
            }
        }))
    }
}
