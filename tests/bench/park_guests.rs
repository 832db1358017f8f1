// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guests that `park.rs` measures: Debian at work, and a guest whose memory is filled from a
//! disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::debian::{Debian, copy_image};
use harness::guest::Guest;
use harness::monitor::{Balloon, Monitor, Spec};
use harness::payload::Payload;
use harness::{Error, Result, userland};
use serde_json::json;

const MEMORY_MIB: u64 = 512;
/// What the filled guest has of programs, beside its kernel and its initial RAM disk.
const FILLED_MIB: usize = 224;
/// Pages that its request reads, from this one on.
const HOT: [usize; 2] = [8192, 2048];
/// For a script in Debian, in the emulated machine.
const SCRIPT_LIMIT: Duration = Duration::from_secs(400);

/// What is in a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Debian: its services, a program that holds an index of text files, files that were built and
    /// files in the page cache, 256 MiB in all.
    Debian,
    /// 224 MiB of programs and libraries of a Debian system, every eighth page zero, as one
    /// program's data.
    Filled,
}

impl Contents {
    /// Its name in figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Filled => "filled",
        }
    }

    /// Writes the disk that it is started with; returns the path.
    pub(crate) fn disk(self, payload: &Payload) -> Result<PathBuf> {
        let disk = PathBuf::from(format!("/tmp/ballast-park-{}.img", self.name()));
        match self {
            Self::Debian => copy_image(payload, &disk)?,
            Self::Filled => userland::write(&disk, FILLED_MIB << 20)?,
        }
        Ok(disk)
    }

    /// The guest with that disk.
    pub(crate) fn spec(self, payload: &Payload, disk: &Path) -> Spec {
        let mut spec = Spec::new(payload, MEMORY_MIB);
        let is_root = self == Self::Debian;
        let drive = json!({
            "drive_id": "disk",
            "path_on_host": disk,
            "is_root_device": is_root,
            "is_read_only": true,
        });
        spec.more.insert("drives".into(), json!([drive]));
        if is_root {
            spec.initrd = None;
            spec.boot_args = "quiet init=/usr/sbin/overlay-init".into();
            spec.balloon = Some(Balloon { reporting: true, ..Balloon::default() });
            // A name of its own: the socket of an earlier guest may still be there.
            let socket = disk.with_extension(format!("{}.sock", Self::next_number()));
            spec.more.insert("vsock".into(), json!({ "guest_cid": 3, "uds_path": socket }));
            spec.more.insert("entropy".into(), json!({}));
        }
        spec
    }

    fn next_number() -> u32 {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until the guest in `monitor` is up, and fills its memory.
    pub(crate) fn begin(self, monitor: Monitor, spec: Spec) -> Result<Sleeper> {
        match self {
            Self::Debian => {
                let socket = spec.more["vsock"]["uds_path"].as_str().map(PathBuf::from);
                let debian = Debian::attach(monitor, socket)?;
                debian.wait_for_login()?;
                let said = debian.run_within(&work(), SCRIPT_LIMIT)?;
                println!("  in the guest: {}", said.trim().replace('\n', "; "));
                let mut sleeper = Sleeper::Debian { debian, sum: String::new() };
                sleeper.learn_sum()?;
                Ok(sleeper)
            }
            Self::Filled => {
                let mut guest = Guest::attach(monitor, spec)?;
                guest.agent.command(&format!("load-read used /dev/vda {FILLED_MIB}M"))?;
                guest.agent.command("write /proc/sys/vm/drop_caches 3")?;
                Ok(Sleeper::Filled(Box::new(guest)))
            }
        }
    }
}

/// A guest that is parked and used in turn.
pub(crate) enum Sleeper {
    Debian {
        debian: Debian,
        /// Of everything that it holds.
        sum: String,
    },
    Filled(Box<Guest>),
}

impl Sleeper {
    /// The monitor that it runs in.
    pub(crate) fn monitor(&self) -> &Monitor {
        match self {
            Self::Debian { debian, .. } => &debian.monitor,
            Self::Filled(guest) => &guest.monitor,
        }
    }

    /// Lets it do its work once, always the same.
    pub(crate) fn request(&mut self) -> Result<()> {
        match self {
            Self::Debian { debian, .. } => {
                let answer = debian.run(REQUEST)?;
                let lines = answer.lines().count();
                harness::check!(lines > 3, "the guest answered {answer:?}");
                Ok(())
            }
            Self::Filled(guest) => {
                guest.agent.verify(&format!("load-verify used {} {}", HOT[0], HOT[1]))
            }
        }
    }

    /// Lets it read everything that it has, and check it.
    pub(crate) fn read_all(&mut self) -> Result<()> {
        match self {
            Self::Debian { debian, sum } => {
                let now = debian.run_within(READ_ALL, SCRIPT_LIMIT)?;
                if now == *sum {
                    return Ok(());
                }
                Err(Error::Check(format!("what the guest holds has changed: {sum:?}, {now:?}")))
            }
            Self::Filled(guest) => {
                guest.agent.verify(&format!("load-verify used 0 {}", FILLED_MIB << 8))
            }
        }
    }

    fn learn_sum(&mut self) -> Result<()> {
        if let Self::Debian { debian, sum } = self {
            *sum = debian.run_within(READ_ALL, SCRIPT_LIMIT)?;
        }
        Ok(())
    }
}

/// A service that keeps text files and an index of them in memory. It answers, by FIFOs, how often
/// a line begins with a word, with the checksum of these lines; for `*` of all lines.
const INDEXER: &str = r#"
my (%lines, %index);
my $kib = sub { open my $f, '<', '/proc/self/status'; my ($n) = join('', <$f>) =~ /VmRSS:\s+(\d+)/; $n };
for my $folder (@ARGV) {
    open my $find, '-|', 'find', $folder, '-xdev', '-type', 'f';
    my @files = sort <$find>;
    while (my $path = shift @files) {
        chomp $path;
        last if &$kib() > 72 << 10;
        open my $file, '<', $path or next;
        while (my $line = <$file>) {
            push @{$lines{$path}}, $line;
            push @{$index{$1}}, \$lines{$path}[-1] if $line =~ /(\w+)/;
        }
    }
}
while (1) {
    open my $ask, '<', '/root/ask' or die;
    chomp(my $word = <$ask>);
    close $ask;
    my ($count, $sum) = (0, 0);
    my $add = sub { $count++; $sum = ($sum + unpack('%32C*', $_[0])) % 2**32 };
    if ($word eq '*') { for my $path (keys %lines) { &$add($_) for @{$lines{$path}} } }
    else { &$add($$_) for @{$index{$word} || []} }
    open my $answer, '>', '/root/answer' or die;
    print $answer "$word: $count lines, sum $sum\n";
    close $answer;
}
"#;

/// Until this much of the guest's memory is in use, files are read.
const USED_KIB: u64 = 236 << 10;

/// The script that puts Debian to work.
fn work() -> String {
    format!(
        "mkfifo /root/ask /root/answer
cat > /root/indexer <<'END'
{INDEXER}
END
systemd-run -q --unit=indexer perl /root/indexer /usr/include /usr/share/perl /var/lib/dpkg
ask() {{ echo \"$1\" > /root/ask; cat /root/answer; }}
ask '*'
cp -r /usr/include/linux /root/tree
printf '#include <stdio.h>\\nint main(void) {{ printf(\"built\\\\n\"); return 0; }}\\n' > /root/built.c
for i in 1 2 3 4; do tcc -o /root/built$i /root/built.c; /root/built$i; done
used() {{ awk '/^MemTotal/ {{ t = $2 }} /^MemFree/ {{ print t - $2 }}' /proc/meminfo; }}
find /usr/lib /usr/bin /usr/sbin /usr/share -xdev -type f | sort > /root/files
: > /root/read
while read -r file; do
    [ $(used) -lt {USED_KIB} ] || break
    cat \"$file\" > /dev/null
    echo \"$file\" >> /root/read
done < /root/files
grep -E '^(MemTotal|MemFree|Cached|AnonPages|Slab)' /proc/meminfo
sync"
    )
}

/// Part of the index, packages by name, a program run.
const REQUEST: &str = "echo define > /root/ask
cat /root/answer
dpkg-query -W | head -n 3
/root/built1";

const READ_ALL: &str = "echo '*' > /root/ask
cat /root/answer
xargs cat < /root/read | sum
cat /root/tree/* 2> /dev/null | sum";
