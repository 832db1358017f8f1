// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use crate::config::*;

fn args(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// The configuration that a command line results in.
fn launch(line: &str) -> Result<Launch, CliError> {
    let args = args(line);
    let mut out = Vec::new();
    if speaks_firecracker(&args) {
        let parsed = parsed(FirecrackerArgs::try_parse_from(until_dashes(&args)), &mut out)?;
        return parsed.expect("no help was asked for").into_launch();
    }
    match parsed(Cli::try_parse_from(&args), &mut out)?.expect("no help was asked for").command {
        BallastCommand::Run(args) => args.into_launch(),
        other => panic!("{line} is {other:?}"),
    }
}

fn refused(line: &str) -> String {
    let error = launch(line).expect_err(line).to_string();
    assert!(!error.contains('\n'), "{line}: {error}");
    error
}

#[test]
fn clap_finds_no_fault_with_itself() {
    Cli::command().debug_assert();
    FirecrackerArgs::command().debug_assert();
}

#[test]
fn run_with_everything() {
    let line = "ballast run --kernel /k --initrd /i --cmdline quiet --cpus 4 \
        --memory 2G,backing=hugetlb-2m,cma=64M,policy=dense \
        --balloon target=512M,deflate-on-oom,stats=5,hinting,reporting,no-blocks \
        --gpu 1280x720,scanouts=2,vnc=/v --rng \
        --vsock cid=7,path=/v.sock --net tap=tap0,mac=06:00:00:00:00:01,mtu=1400 --net tap=tap1,id=lan,queues=2,vhost=auto \
        --net user,mtu=9000,tcp=2222:22 \
        --disk path=/a,root,ro,cache=unsafe,engine=sync --disk path=/b,id=data,format=qcow2,queues=4 \
        --console file=/c --api-sock /s --id vm-1 \
        --log-level debug --log-file /l --metrics-file /m --no-seccomp";
    let launch = launch(line).unwrap();
    let expected = VmConfig {
        machine_config: MachineConfig {
            vcpu_count: 4,
            mem_size_mib: 2048,
            ..MachineConfig::default()
        },
        boot_source: Some(BootSource {
            kernel_image_path: "/k".into(),
            initrd_path: Some("/i".into()),
            boot_args: Some("quiet".into()),
        }),
        memory: MemoryConfig {
            backing: Some(BackingKind::Hugetlb2M),
            cma_mib: 64,
            policy: Some(PolicyConfig { preset: PolicyPreset::Dense, ..PolicyConfig::default() }),
            ..MemoryConfig::default()
        },
        balloon: Some(BalloonConfig {
            amount_mib: 512,
            deflate_on_oom: true,
            stats_polling_interval_s: 5,
            free_page_hinting: true,
            free_page_reporting: true,
            blocks: false,
        }),
        gpu: Some(GpuConfig {
            width_px: 1280,
            height_px: 720,
            scanouts: 2,
            vnc_socket: Some("/v".into()),
        }),
        drives: vec![
            DriveConfig {
                drive_id: "disk0".into(),
                is_root_device: true,
                partuuid: None,
                is_read_only: true,
                cache_type: CacheType::Unsafe,
                path_on_host: Some("/a".into()),
                rate_limiter: None,
                io_engine: IoEngine::Sync,
                socket: None,
                format: ImageFormat::Raw,
                backing_files: false,
                queues: 1,
            },
            DriveConfig {
                drive_id: "data".into(),
                is_root_device: false,
                partuuid: None,
                is_read_only: false,
                cache_type: CacheType::Writeback,
                path_on_host: Some("/b".into()),
                rate_limiter: None,
                io_engine: IoEngine::Async,
                socket: None,
                format: ImageFormat::Qcow2,
                backing_files: false,
                queues: 4,
            },
        ],
        network_interfaces: vec![
            NetworkInterfaceConfig {
                iface_id: "eth0".into(),
                host_dev_name: Some("tap0".into()),
                guest_mac: Some("06:00:00:00:00:01".parse().unwrap()),
                mtu: Some(1400),
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                queues: 1,
                backend: NetBackend::Tap,
                tcp_ports: None,
                vhost: VhostChoice::Off,
            },
            NetworkInterfaceConfig {
                iface_id: "lan".into(),
                host_dev_name: Some("tap1".into()),
                guest_mac: None,
                mtu: None,
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                queues: 2,
                backend: NetBackend::Tap,
                tcp_ports: None,
                vhost: VhostChoice::Auto,
            },
            NetworkInterfaceConfig {
                iface_id: "eth2".into(),
                host_dev_name: None,
                guest_mac: None,
                mtu: Some(9000),
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                queues: 1,
                backend: NetBackend::User,
                tcp_ports: Some("2222:22".into()),
                vhost: VhostChoice::Off,
            },
        ],
        vsock: Some(VsockConfig { guest_cid: 7, uds_path: "/v.sock".into(), vsock_id: None }),
        entropy: Some(EntropyConfig::default()),
        console: ConsoleConfig::File("/c".into()),
        ..VmConfig::default()
    };
    assert_eq!(launch.config, Some(expected));
    assert_eq!(launch.logger.level, Some(LogLevel::Debug));
    assert_eq!(launch.logger.log_path, Some("/l".into()));
    assert_eq!(launch.metrics, Some(MetricsConfig::to_file("/m".into())));
    assert_eq!(launch.api_sock, Some("/s".into()));
    assert_eq!((launch.id.as_str(), launch.seccomp), ("vm-1", false));
}

#[test]
fn run_with_little() {
    let launch = launch("ballast run --kernel /k").unwrap();
    let config = launch.config.unwrap();
    assert_eq!(config.machine_config, MachineConfig::default());
    assert_eq!(config.boot_source.unwrap().cmdline(), DEFAULT_BOOT_ARGS);
    assert_eq!((config.balloon, config.gpu, launch.api_sock), (None, None, None));
    assert!(launch.seccomp);
}

#[test]
fn flags_stand_above_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    let text = r#"{"boot-source": {"kernel_image_path": "/old", "boot_args": "a", "initrd_path": "/i"},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
        "balloon": {"amount_mib": 1, "deflate_on_oom": true}}"#;
    std::fs::write(&file, text).unwrap();
    let file = file.display();
    let line = format!("ballast run --config {file} --cpus 3 --balloon target=2M");
    let config = launch(&line).unwrap().config.unwrap();
    assert_eq!(config.machine_config.vcpu_count, 3);
    assert_eq!(config.machine_config.mem_size_mib, 64);
    assert_eq!(config.boot_source.unwrap().kernel_image_path, Path::new("/old"));
    // A flag replaces its whole section.
    let balloon = config.balloon.unwrap();
    assert_eq!((balloon.amount_mib, balloon.deflate_on_oom), (2, false));

    let line = format!("ballast run --config {file} --kernel /new");
    let boot = launch(&line).unwrap().config.unwrap().boot_source.unwrap();
    // Another kernel comes without the old one's initrd, but with the command line.
    assert_eq!((boot.kernel_image_path, boot.initrd_path), ("/new".into(), None));
    assert_eq!(boot.boot_args.as_deref(), Some("a"));
}

#[test]
fn mistakes_are_named_in_a_line() {
    for (line, named) in [
        ("ballast run", "--kernel"),
        ("ballast run --kernel /k --kernal /k", "--kernal"),
        ("ballast run --kernel /k --kernel /k", "--kernel"),
        ("ballast run --kernel /k --cpus many", "many"),
        ("ballast run --kernel /k --cpus 256", "256"),
        ("ballast run --initrd /i --config /c", "--kernel"),
        ("ballast run --kernel /k --memory 512", "512M"),
        ("ballast run --kernel /k --memory -1M", "-1"),
        ("ballast run --kernel /k --memory 1.5G", "1.5G"),
        ("ballast run --kernel /k --memory 99999999999999T", "too large"),
        ("ballast run --kernel /k --memory backing=thp", "value first"),
        ("ballast run --kernel /k --memory 1G,backing=gold", "gold"),
        ("ballast run --kernel /k --memory 1G,policy=greedy", "greedy"),
        ("ballast run --kernel /k --memory 1G,backing", "backing=…"),
        ("ballast run --kernel /k --memory 1G,cma=1M,cma=2M", "twice"),
        ("ballast run --kernel /k --memory 1G,,", "empty"),
        ("ballast run --kernel /k --memory 1G,size=1", "unknown key `size`"),
        ("ballast run --kernel /k --balloon target=1G,hinting=yes", "takes no value"),
        ("ballast run --kernel /k --balloon target=9999T", "too large"),
        ("ballast run --kernel /k --balloon stats=-1", "stats"),
        ("ballast run --kernel /k --net mac=06:00:00:00:00:01", "tap=NAME"),
        ("ballast run --kernel /k --net tap=t,mac=06:00", "six"),
        ("ballast run --kernel /k --net tap=t,vhost=yes", "off, auto or on"),
        ("ballast run --kernel /k --disk id=a", "path=PATH"),
        ("ballast run --kernel /k --disk path=/a,format=vmdk", "raw or qcow2"),
        ("ballast run --kernel /k --gpu 1280", "WIDTHxHEIGHT"),
        ("ballast run --kernel /k --gpu 1280x720x3", "WIDTHxHEIGHT"),
        ("ballast run --kernel /k --console screen", "tty, pty, socket=PATH, file=PATH or null"),
        ("ballast run --kernel /k --console file=", "tty, pty, socket=PATH, file=PATH or null"),
        ("ballast run --kernel /k --log-level loud", "loud"),
        ("ballast run --config /no/such/file", "/no/such/file"),
        ("ballast", "--help"),
        ("ballast walk", "walk"),
        ("firecracker --no-api", "--config-file"),
        ("firecracker --no-seccomp --seccomp-filter /f", "--seccomp-filter"),
        ("firecracker --describe-snapshot /s", "snapshots"),
        ("ballast --snapshot-version", "snapshots"),
        ("ballast --level loud", "loud"),
        ("ballast --seccomp-filter /no/such/file", "/no/such/file"),
        ("ballast --metadata /no/such/file", "/no/such/file"),
        ("ballast --metadata /proc/self/cmdline", "not JSON"),
        ("ballast run --kernel /k --mmds-file /no/such/file", "/no/such/file"),
        ("ballast --api-sock", "--api-sock"),
        ("ballast --api-sock /s stray", "stray"),
    ] {
        let error = refused(line);
        assert!(error.contains(named), "{line}: {error}");
    }
}

#[test]
fn sizes() {
    use super::values::SizeMib;
    for (text, mib) in [("1M", 1), ("512MiB", 512), ("2g", 2048), ("1T", 1 << 20)] {
        assert_eq!(text.parse(), Ok(SizeMib(mib)), "{text}");
    }
    for text in ["", "M", "1", "1K", "1MB", " 1M", "1 M", "+1M", "0x1M"] {
        assert!(text.parse::<SizeMib>().is_err(), "{text}");
    }
}

#[test]
fn firecrackers_flags() {
    let launch = launch(
        "/usr/bin/firecracker --api-sock /s --id i-1 --log-path /l --level Info --show-level \
         --show-log-origin --module m --metrics-path /m --http-api-max-payload-size 100 \
         --seccomp-filter /proc/self/exe --enable-pci --boot-timer --start-time-us 1 --start-time-cpu-us 2 \
         --parent-cpu-time-us 3 --mmds-size-limit 4",
    )
    .unwrap();
    assert_eq!(launch.config, None);
    assert_eq!(launch.api_sock, Some("/s".into()));
    assert_eq!((launch.id.as_str(), launch.max_payload_bytes), ("i-1", 100));
    assert_eq!(launch.mmds_size_limit, Some(4));
    let logger = LoggerConfig {
        log_path: Some("/l".into()),
        level: Some(LogLevel::Info),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: Some("m".into()),
    };
    assert_eq!(launch.logger, logger);
    assert_eq!(launch.metrics, Some(MetricsConfig::to_file("/m".into())));
    assert_eq!(launch.ignored, ["--seccomp-filter", "--enable-pci"]);
}

/// By any name, the same arguments mean the same.
#[test]
fn names_do_not_matter_where_flags_decide() {
    let as_ballast = launch("ballast --api-sock /s --id i --no-seccomp").unwrap();
    let as_firecracker = launch("/opt/firecracker --api-sock /s --id i --no-seccomp").unwrap();
    assert_eq!(as_ballast, as_firecracker);
    assert_eq!(launch("firecracker").unwrap().api_sock, Some("/run/firecracker.socket".into()));
    assert_eq!(launch("firecracker --id i -- --not-ours").unwrap().id, "i");
    assert!(!speaks_firecracker(&args("ballast --help")));
    assert!(!speaks_firecracker(&args("ballast run --help")));
    assert!(speaks_firecracker(&args("firecracker --help")));
}

#[test]
fn without_an_api_there_must_be_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    std::fs::write(&file, "{}").unwrap();
    let line = format!("firecracker --no-api --config-file {}", file.display());
    let launch = launch(&line).unwrap();
    assert_eq!((launch.api_sock, launch.config), (None, Some(VmConfig::default())));
}

/// How clients of Firecracker find the version: first line, second word, without the `v`.
#[test]
fn clients_find_the_version() {
    let text = version_text();
    let words: Vec<&str> = text.lines().next().unwrap().split(' ').collect();
    assert_eq!(words[0], "Firecracker");
    assert_eq!(words.len(), 2);
    let numbers: Vec<Result<u32, _>> =
        words[1].strip_prefix('v').unwrap().split('.').map(str::parse).collect();
    assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "{text}");
}

#[test]
fn a_socket_without_a_server_is_named() {
    use crate::cli::client::{ClientError, request};
    let error = request(Path::new("/no/such/socket"), http::Method::GET, "/", None).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
    assert!(error.to_string().contains("/no/such/socket"), "{error}");
}

#[test]
fn exit_codes_of_mistakes_are_firecrackers_in_its_place() {
    let code = |line: &str| launch(line).unwrap_err().status(speaks_firecracker(&args(line)));
    assert_eq!(code("firecracker --nonsense"), 153);
    assert_eq!(code("ballast --api-sock"), 153);
    assert_eq!(code("firecracker --level loud"), 152);
    assert_eq!(code("firecracker --snapshot-version"), 1);
    assert_eq!(code("ballast run --nonsense"), 1);
}
