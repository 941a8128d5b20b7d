//! A file system that is really full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Stage;
use super::stage::utc_us;
use crate::oracle::evidence::Allowance;
use crate::oracle::witness::Witness;
use crate::{ClinicError, Result, folders};

/// A file system in memory, of so many MiB; it goes with this.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
    place: PathBuf,
}

impl SmallDisk {
    /// Mounts it. Nothing where that is not allowed.
    pub fn mount(mib: u32) -> Result<Option<Self>> {
        let folder = tempfile::tempdir().map_err(ClinicError::file("a folder for a small disk"))?;
        let options = format!("size={mib}m,mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        if !done.is_ok_and(|output| output.status.success()) {
            return Ok(None);
        }
        let place = folder.path().join("data");
        folders::make(&place, 0o700)?;
        Ok(Some(Self { folder, place }))
    }

    /// A folder on it.
    pub fn place(&self) -> &Path {
        &self.place
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What cannot be unmounted goes with its last user.
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).output();
    }
}

const DISK_MIB: u32 = 24;
/// Less than the database needs for its next write.
const NO_ROOM: u64 = 64 * 1024;
const TO_FILL_IT: Duration = Duration::from_secs(20);

/// A gateway on a disk of a few MiB whose limits lie far above it, so that only the file system itself says no; the cloud
/// is away, and somebody else's file takes the rest of the room. Then there is room again, and a cloud.
pub fn hard_limit(stage: &mut Stage) -> Result<()> {
    let Some(disk) = SmallDisk::mount(DISK_MIB)? else {
        stage.skip("a file system of its own needs root");
        return Ok(());
    };
    let from_us = utc_us() - 4 * 3_600_000_000;
    let (nowhere, right) = (crate::ports::free(), stage.clinic.broker.port());
    let gateway = stage.gateway(
        0,
        "small-disk",
        &format!("[uplink]\nport = {nowhere}\n[store]\nsoft_limit_mib = 512\nhard_limit_mib = 1024\nreserve_mib = 1\n"),
    )?;
    stage.clinic.gateways[gateway].lies_at(disk.place())?;
    let wearable = stage.wearable(0, &[gateway], &["--plan", "waveforms", "--prefill", "1h"])?;
    stage.start_gateway_at(0.4, gateway);
    let filler = disk.place().with_file_name("filler");
    stage.disks.push(disk);
    let (fills, frees) = (filler.clone(), filler);
    stage.at(4.0, "somebody fills the disk", move |stage| {
        fill(&fills);
        stage.await_sight_for(TO_FILL_IT, Witness::DiskFull, &mut |_| {
            fill(&fills);
            folders::free_bytes(&fills) < NO_ROOM
        });
        Ok(())
    });
    stage.at(20.0, "the disk is still full", |_| Ok(()));
    stage.at(22.0, "there is room again, and the cloud is back", move |stage| {
        std::fs::remove_file(&frees).map_err(ClinicError::file(&frees))?;
        stage.allow(wearable, Allowance::Quota { from_us, to_us: utc_us() });
        let gateway = &mut stage.clinic.gateways[gateway];
        gateway.process().stop();
        gateway.configure(&format!("[uplink]\nport = {right}\n"))?;
        gateway.process().spawn()
    });
    Ok(())
}

/// Writes until nothing more goes.
fn fill(file: &Path) {
    use std::io::Write as _;
    let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(file) else { return };
    for piece in [1 << 20, 64 << 10, 4 << 10, 1] {
        while file.write_all(&vec![0; piece]).is_ok() {}
    }
}
