// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian in interactive use: booted by `resources/debian.json` with disk, network, vsock and
//! display, used, and shut down.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::confine::own_network;
use harness::debian::{Debian, configuration, copy_image};
use harness::picture::Picture;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use serde_json::{Value, json};

use crate::devices::run;

/// The tested configuration, as in the repository.
const CONFIGURATION: &str = include_str!("../../resources/debian.json");
/// The TAP that it names, and the host's address in the network of its command line.
const TAP: &str = "ballast0";
const HOST: &str = "172.30.0.1";

/// The balloon that goes up and down, in MiB.
const BALLOON_MIB: u64 = 512;
const BALLOON_LIMIT: Duration = Duration::from_secs(240);
/// Bytes of a block, and where evacuation begins: above what the kernel itself lies in.
const BLOCK: u64 = 2 << 20;
const EVACUATED_FROM: u64 = 256 << 20;
const EVACUATED_BLOCKS: u64 = 16;

/// Login at the console, a display, SSH; a package, a compiled program; TCP both ways without a loss;
/// files that are written while balloon, evacuation and a pass run; a clean end.
pub(crate) fn a_person_can_work_in_it(context: &Context) -> Result<()> {
    own_network()?;
    let dir = tempfile::tempdir().map_err(Error::io("creating a folder"))?;
    let image = dir.path().join("rootfs.ext4");
    copy_image(&context.payload, &image)?;
    let config = configuration(CONFIGURATION, &context.payload, &image, dir.path())?;
    let mut guest = Debian::start(&context.ballast(), &config, dir.path(), &context.logs)?;
    set_up_network(context, &mut guest)?;
    let ready = guest.wait_for_login()?;
    println!("login after {:.1} s", (ready.at - guest.monitor.started()).as_secs_f64());

    guest.log_in()?;
    guest.type_line("echo $((40 + 2)) is the answer of $(uname -n)")?;
    guest.monitor.console().wait_for(0, "42 is the answer of debian", Duration::from_secs(60))?;
    let failed = guest.run("systemctl --failed --no-legend --plain")?;
    check!(failed.trim().is_empty(), "units have failed: {failed}");
    shows_a_login(&guest)?;

    installs_and_compiles(&guest)?;
    network(context, &guest)?;
    writes_while_memory_moves(&mut guest)?;

    check_eq!(guest.power_off()?.code(), Some(0));
    check_clean(context, &image)
}

/// The monitor makes the interface as it starts.
fn set_up_network(context: &Context, guest: &mut Debian) -> Result<()> {
    let ip = context.payload.path("ip");
    guest.monitor.poll("the interface", Duration::from_secs(60), |_| {
        let shown = Command::new(&ip).args(["link", "show", TAP]).output();
        Ok(shown.is_ok_and(|output| output.status.success()).then_some(()))
    })?;
    run(Command::new(&ip).args(["addr", "add", &format!("{HOST}/30"), "dev", TAP]))?;
    run(Command::new(&ip).args(["link", "set", TAP, "up"]))?;
    run(Command::new(&ip).args(["link", "set", "lo", "up"]))
}

/// The display's console has a login prompt on it.
fn shows_a_login(guest: &Debian) -> Result<()> {
    let active = guest.run("systemctl is-active getty@tty1.service")?;
    check_eq!(active.trim(), "active");
    let response = guest.monitor.api().request("GET", "/gpu/scanouts/0", None)?;
    check_eq!(response.status, 200);
    let lit = Picture::from_png(&response.body)?.lit();
    check!(lit > 200, "the display shows {lit} lit pixels: not a line of text");
    Ok(())
}

/// A package by apt from a folder of the image, a program from its C source, a session by SSH.
fn installs_and_compiles(guest: &Debian) -> Result<()> {
    guest.run(
        "echo 'deb [trusted=yes] file:/srv/packages ./' > /root/local.list
         apt='apt-get -q -o Dir::Etc::SourceList=/root/local.list -o Dir::Etc::SourceParts=/none'
         $apt update
         $apt install -y hello",
    )?;
    let greeting = guest.run("hello")?;
    check_eq!(greeting.trim(), "Hello, world!");
    let printed = guest.run(
        "cat > /root/sum.c <<'END'
#include <stdio.h>
int main(void)
{
    unsigned long sum = 0;
    for (unsigned long i = 1; i <= 100000; i++)
        sum += i * i % 7;
    printf(\"%lu\\n\", sum);
    return 0;
}
END
         tcc -Wall -o /root/sum /root/sum.c
         /root/sum",
    )?;
    let sum: u64 = (1..=100_000).map(|i: u64| i * i % 7).sum();
    check_eq!(printed.trim(), sum.to_string());
    let session = guest.run(
        "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
         cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
         ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR 127.0.0.1 'echo logged in as $(whoami)'",
    )?;
    check!(session.contains("logged in as root"), "{session}");
    // The password is for the consoles: SSH takes keys only.
    let refused = guest.run(
        "rm /root/.ssh/id_ed25519
         ssh -o BatchMode=yes -o PreferredAuthentications=password,publickey -o LogLevel=ERROR \\
             127.0.0.1 true 2>&1 || true",
    )?;
    check!(refused.contains("Permission denied (publickey)"), "{refused}");
    Ok(())
}

/// TCP both ways by iperf3; afterwards each side has received all that the other has sent.
fn network(context: &Context, guest: &Debian) -> Result<()> {
    const MIB: u64 = 16;
    guest.run(&format!("ping -q -c 3 -i 0.2 {HOST}"))?;
    // From here on the TAP is up and takes every frame.
    let refused = refused_frames(guest)?;
    for reverse in ["", "-R"] {
        let mut server = Server::start(context)?;
        // The server listens before it says so, but a pipe would keep the line back.
        let report = guest.run(&format!(
            "for i in $(seq 50); do
                 iperf3 -c {HOST} -n {MIB}M {reverse} -J > /tmp/report && break
                 grep -q refused /tmp/report && sleep 0.2
             done
             cat /tmp/report"
        ))?;
        server.wait()?;
        let report: Value = serde_json::from_str(&report)
            .map_err(|error| Error::Check(format!("iperf3: {error}: {report}")))?;
        let bytes =
            |sum: &str| report.pointer(&format!("/end/{sum}/bytes")).and_then(Value::as_u64);
        check!(bytes("sum_sent") >= Some(MIB << 20), "less was sent: {report}");
        // The receiver stops to count when the other side says that it is done: the last bytes may
        // be on their way then.
        check!(bytes("sum_received") >= Some(MIB << 19), "less arrived: {report}");
        println!(
            "TCP {}: {:.0} MiB/s",
            if reverse.is_empty() { "from the guest" } else { "to the guest" },
            report
                .pointer("/end/sum_received/bits_per_second")
                .and_then(Value::as_f64)
                .unwrap_or(0.0)
                / 8e6
        );
    }
    check_eq!(refused_frames(guest)?, refused);
    every_packet_arrived(guest)
}

/// What one side has sent, the other has received, except for frames sent before the TAP was up:
/// such frames are lost as on an unplugged wire, and the monitor counts them.
fn every_packet_arrived(guest: &Debian) -> Result<()> {
    let mut counted = String::new();
    // Packets that are still on their way are counted by one side only: look again then.
    for _ in 0..20 {
        let inside = guest.run("cd /sys/class/net/eth0/statistics; cat tx_packets rx_packets")?;
        let outside = ["rx_packets", "tx_packets"].map(|name| tap_counter(name).unwrap_or(0));
        let lost = refused_frames(guest)?;
        let numbers: Vec<u64> = inside.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        if let [sent, received] = numbers[..]
            && outside[0] + lost >= sent
            && received >= outside[1]
        {
            return Ok(());
        }
        counted = format!(
            "the guest sent and received {numbers:?} packets, the TAP saw {outside:?} and refused {lost}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    Err(Error::Check(counted))
}

/// Frames that the monitor could not hand to the TAP.
fn refused_frames(guest: &Debian) -> Result<u64> {
    let metrics = guest.monitor.api().get("/metrics")?;
    let count = metrics["net_eth0"]["tap_write_fails"].as_u64();
    count.ok_or_else(|| Error::Check(format!("no tap_write_fails: {metrics}")))
}

fn tap_counter(name: &str) -> Result<u64> {
    // /sys shows the interfaces of the network in which it was mounted; this file those of ours.
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")
        .map_err(Error::io("reading /proc/net/dev"))?;
    let fields = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{TAP}:")));
    let column = if name == "rx_packets" { 1 } else { 9 };
    let number = fields.and_then(|fields| fields.split_whitespace().nth(column)?.parse().ok());
    number.ok_or_else(|| Error::Check(format!("no {name} of {TAP} in {text}")))
}

/// iperf3 on this side, for one connection.
struct Server(Child);

impl Server {
    fn start(context: &Context) -> Result<Self> {
        let child = Command::new(context.payload.path("iperf3"))
            .args(["-s", "-1", "-B", HOST])
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::io("starting iperf3"))?;
        Ok(Self(child))
    }

    fn wait(&mut self) -> Result<()> {
        let status = self.0.wait().map_err(Error::io("waiting for iperf3"))?;
        check!(status.success(), "iperf3 ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has already ended on success.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files with checksums are written while the balloon changes, blocks are evacuated and a pass
/// runs; each file is intact, also on the disk.
fn writes_while_memory_moves(guest: &mut Debian) -> Result<()> {
    guest.run(
        "mkdir /root/files
         touch /root/sums
         cat > /root/writer <<'END'
i=0
while [ ! -e /root/stop ]; do
    i=$((i + 1))
    head -c 1M /dev/urandom > /root/files/$i
    sha256sum /root/files/$i >> /root/sums
    [ $((i % 8)) -ne 0 ] || sync
    # A part of them is taken away again, so that the file system is used in pieces.
    [ $((i % 3)) -ne 0 ] || { rm /root/files/$i; sed -i '$d' /root/sums; }
done
END
         systemd-run -q --unit=writer sh /root/writer",
    )?;
    for round in 0..3 {
        balloon_to(guest, BALLOON_MIB)?;
        let start = EVACUATED_FROM + round * EVACUATED_BLOCKS * BLOCK;
        let body = json!({ "start": start, "blocks": EVACUATED_BLOCKS });
        guest.monitor.api().put("/memory/evacuate", &body)?;
        // For guests of any speed: it writes in the memory that is left, and then in all of it.
        guest.run(
            "before=$(wc -l < /root/sums)
             until [ $(wc -l < /root/sums) -ge $((before + 2)) ]; do sleep 0.2; done",
        )?;
        balloon_to(guest, 0)?;
        guest.monitor.api().put("/memory/compact", &json!({}))?;
        guest.monitor.poll("the end of a pass", BALLOON_LIMIT, |monitor| {
            let status = monitor.api().get("/memory/compact")?;
            Ok((status["running"] == json!(false)).then_some(()))
        })?;
    }
    guest.run("touch /root/stop; while systemctl -q is-active writer; do sleep 0.2; done")?;
    let checked = guest.run_within(
        "sync
         echo 3 > /proc/sys/vm/drop_caches
         sha256sum -c --quiet /root/sums
         wc -l < /root/sums",
        Duration::from_secs(300),
    )?;
    let files: u64 = checked.trim().parse().map_err(|_| Error::Check(checked.clone()))?;
    println!("{files} files are intact");
    check!(files >= 6, "only {files} files were written in between");
    Ok(())
}

fn balloon_to(guest: &mut Debian, mib: u64) -> Result<()> {
    let api = guest.monitor.api().clone();
    api.patch("/balloon", &json!({ "amount_mib": mib }))?;
    guest.monitor.poll(&format!("a balloon of {mib} MiB"), BALLOON_LIMIT, |monitor| {
        let stats = monitor.api().get("/balloon/statistics")?;
        Ok((stats["actual_mib"] == json!(mib)).then_some(()))
    })
}

/// e2fsck finds nothing to repair, and no journal to replay: Debian has unmounted it.
fn check_clean(context: &Context, image: &Path) -> Result<()> {
    run(Command::new(context.payload.path("e2fsck")).args(["-f", "-n"]).arg(image))
}
