// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks whose image fails, and a killed monitor: the guest gets errors only for failed requests,
//! the monitor survives, and flushed data is on the disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::guest::Guest;
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

use crate::devices::{drive, image, run, with};

const MIB: u64 = 1 << 20;

/// A file system without room, a file that was cut off, one that was deleted, a device with bad
/// sectors: in one guest, whose other disks keep working.
pub(crate) fn the_guest_sees_errors_and_goes_on(context: &Context) -> Result<()> {
    let small = SmallFileSystem::mount(context.logs.join("small"))?;
    let full = small.0.join("image");
    sparse(&full, 32)?;
    let (cut, deleted) = (image(context, "cut", 32)?, image(context, "deleted", 32)?);
    let broken = BadSectors::make()?;
    let mut drives = vec![
        drive("full", &full, &json!({ "cache_type": "Writeback" })),
        drive("cut", &cut, &json!({ "cache_type": "Writeback", "io_engine": "Sync" })),
        drive("deleted", &deleted, &json!({ "cache_type": "Writeback" })),
    ];
    if let Some(broken) = &broken {
        drives.push(drive("broken", &broken.device, &json!({ "cache_type": "Writeback" })));
    }
    let spec = with(context, json!({ "drives": drives }));
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    let fails = |guest: &mut Guest, command: &str| {
        let answer = guest.agent.command(command);
        check!(answer.is_err(), "{command}: the guest saw no error: {answer:?}");
        Ok(())
    };
    let intact = |guest: &mut Guest, command: &str| {
        let figures = guest.agent.figures(command)?;
        check!(figures["pages"] > 0 && figures["damaged"] == 0, "{command}: {figures:?}");
        Ok(())
    };

    // Eight MiB of room for an image of 32.
    guest.agent.command("disk-write /dev/vda 2M 1")?;
    fails(&mut guest, "disk-write /dev/vda 24M 2")?;
    guest.agent.command("disk-write /dev/vda 2M 3")?;
    intact(&mut guest, "disk-verify /dev/vda 2M 3")?;

    guest.agent.command("disk-write /dev/vdb 24M 4")?;
    File::options()
        .write(true)
        .open(&cut)
        .and_then(|file| file.set_len(4 * MIB))
        .map_err(Error::io("cutting the image off"))?;
    fails(&mut guest, "disk-verify /dev/vdb 24M 4")?;
    intact(&mut guest, "disk-verify /dev/vdb 4M 4")?;

    guest.agent.command("disk-write /dev/vdc 8M 5")?;
    fs::remove_file(&deleted).map_err(Error::io("deleting the image"))?;
    intact(&mut guest, "disk-verify /dev/vdc 8M 5")?;
    guest.agent.command("disk-write /dev/vdc 16M 6")?;
    intact(&mut guest, "disk-verify /dev/vdc 16M 6")?;

    if broken.is_some() {
        guest.agent.command("disk-write /dev/vdd 4M 7")?;
        // A read fails at once; a write goes to the host's page cache first, and its flush fails.
        fails(&mut guest, "disk-verify /dev/vdd 16M 8")?;
        fails(&mut guest, "disk-write /dev/vdd 16M 8")?;
        guest.agent.command("disk-write /dev/vdd 4M 9")?;
        intact(&mut guest, "disk-verify /dev/vdd 4M 9")?;
    }

    let metrics = guest.monitor.api().get("/metrics")?;
    for id in ["full", "cut"] {
        let failed = &metrics[format!("block_{id}")]["execute_fails"];
        check!(failed.as_u64() > Some(0), "{id}: {metrics}");
    }
    // The kernel has reported the disk errors, as expected, and no other problem.
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// What a guest has flushed is in the image after SIGKILL, regardless of other data in flight.
pub(crate) fn flushed_data_survives_a_killed_monitor(context: &Context) -> Result<()> {
    let path = image(context, "ext4", 96)?;
    run(Command::new(context.payload.path("mke2fs")).args(["-q", "-t", "ext4", "-F"]).arg(&path))?;
    let spec = |context| {
        let drives = [drive("data", &path, &json!({ "cache_type": "Writeback" }))];
        with(context, json!({ "drives": drives }))
    };
    let mut guest = Guest::boot(&context.ballast(), spec(context), &context.logs)?;
    guest.agent.command("disk-mount /dev/vda ext4 /mnt")?;
    guest.agent.command("disk-write /mnt/noise 4M 1")?;
    guest.agent.command("repeat-start noise /mnt/noise something")?;
    for file in 0..3 {
        guest.agent.command(&format!("disk-write /mnt/file{file} 8M {file}"))?;
    }
    // Dropping it kills its monitor.
    drop(guest);

    let mut guest = Guest::boot(&context.ballast(), spec(context), &context.logs)?;
    guest.agent.command("disk-mount /dev/vda ext4 /mnt")?;
    for file in 0..3 {
        let figures = guest.agent.figures(&format!("disk-verify /mnt/file{file} 8M {file}"))?;
        check_eq!((figures["pages"], figures["damaged"]), (2048, 0));
    }
    guest.agent.command("disk-unmount /mnt")?;
    check_eq!(guest.power_off()?.code(), Some(0));
    run(Command::new(context.payload.path("e2fsck")).args(["-f", "-n"]).arg(&path))
}

fn sparse(path: &Path, mib: u64) -> Result<()> {
    let file = File::create(path).map_err(Error::io("creating an image"))?;
    file.set_len(mib * MIB).map_err(Error::io("sizing an image"))
}

/// A file system of 8 MiB; unmounted at the end.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at).map_err(Error::io("creating a folder"))?;
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=8m"))
            .map_err(|error| Error::io("mounting a small file system")(error.into()))?;
        Ok(Self(at))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // The guest's monitor has ended, or is killed with the test: then it goes with it.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A block device of 64 MiB in memory (null_blk), of which sectors 16384 to 20479 fail; removed at
/// the end.
struct BadSectors {
    folder: PathBuf,
    device: PathBuf,
}

impl BadSectors {
    /// `None`, with a message, if the host's kernel has no null_blk.
    fn make() -> Result<Option<Self>> {
        const CONFIGFS: &str = "/sys/kernel/config";
        const NAME: &str = "ballastbad";
        let top = Path::new(CONFIGFS).join("nullb");
        // On a usual host it is not loaded; in the outer machine it is, and there is no modprobe.
        let _ = Command::new("modprobe").args(["null_blk", "nr_devices=0"]).output();
        if !top.is_dir() {
            // Mounted already on a usual host.
            let _ = mount("configfs", CONFIGFS, "configfs", MountFlags::empty(), None);
        }
        if !top.is_dir() {
            println!("no null_blk here: no device with bad sectors is tried");
            return Ok(None);
        }
        let folder = top.join(NAME);
        // What a test that was killed may have left.
        let _ = fs::remove_dir(&folder);
        fs::create_dir(&folder).map_err(Error::io("creating a null_blk device"))?;
        let mut this = Self { folder, device: PathBuf::new() };
        for (field, value) in
            [("size", "64"), ("memory_backed", "1"), ("badblocks", "+16384-20479"), ("power", "1")]
        {
            fs::write(this.folder.join(field), value)
                .map_err(Error::io(format!("writing {field} of a null_blk device")))?;
        }
        let index = fs::read_to_string(this.folder.join("index"))
            .map_err(Error::io("reading the number of a null_blk device"))?;
        let named = Path::new("/dev").join(NAME);
        let numbered = PathBuf::from(format!("/dev/nullb{}", index.trim()));
        this.device = if named.exists() { named } else { numbered };
        Ok(Some(this))
    }
}

impl Drop for BadSectors {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join("power"), "0");
        let _ = fs::remove_dir(&self.folder);
    }
}
