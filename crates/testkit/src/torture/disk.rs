//! The store's disk: a small file system in a file, which can be filled, and whose power can be cut.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{Host, checked, eventually};

/// Room for a few segments and checkpoints of a store.
const SIZE: &str = "64M";
const STORE: &str = "/var/lib/coracle/store";
/// Takes what space there is; the store does not look at it.
const FILLER: &str = "/var/lib/coracle/store/filler";

/// The file system behind a host's store.
pub struct Disk {
    /// The file that holds it, as it is called on the machine and on the host.
    image: PathBuf,
    turns: u32,
}

impl Disk {
    /// Makes the file system and mounts it in the host's own mount namespace, before the server is started.
    ///
    /// # Errors
    /// When `mkfs.ext4` or the loop device is missing.
    pub fn mount(host: &Host) -> Result<Self> {
        let image = host.dir.join("store.img");
        let shown = image.display().to_string();
        checked(Command::new("truncate").args(["--size", SIZE, &shown]))?;
        checked(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", &shown])).context("mkfs.ext4 (e2fsprogs)")?;
        host.run(&["mkdir", "-p", STORE])?;
        let disk = Self { image, turns: 0 };
        disk.attach(host)?;
        Ok(disk)
    }

    fn attach(&self, host: &Host) -> Result<()> {
        let name = self.image.file_name().context("an image has a name")?.to_string_lossy().into_owned();
        host.run(&["mount", "-t", "ext4", "-o", "loop", &format!("/run/lab/{name}"), STORE])?;
        host.run(&["chmod", "700", STORE]).map(drop)
    }

    /// Takes all space that there is.
    ///
    /// # Errors
    /// When the tool is missing.
    pub fn fill(&self, host: &Host) -> Result<()> {
        // In pieces: the last one finds the disk full, which is what is wanted.
        let script = format!(
            "for size in 1M 64K 4K; do while head -c $size /dev/zero >> {FILLER}; do :; done; done 2>/dev/null; true"
        );
        host.run(&["sh", "-c", &script]).map(drop)
    }

    /// # Errors
    /// When the file cannot be removed.
    pub fn free(&self, host: &Host) -> Result<()> {
        host.run(&["rm", "-f", FILLER]).map(drop)
    }

    /// What was written and not synced is lost, as if the power had been cut. Nobody may have the store open.
    ///
    /// # Errors
    /// When the file system is in use.
    pub fn cut(&mut self, host: &Host) -> Result<()> {
        self.turns += 1;
        let next = host.dir.join(format!("store-{}.img", self.turns));
        // What the file holds is what reached the disk; the rest is in the memory of the file system above it.
        checked(Command::new("cp").args(["--sparse=always"]).arg(&self.image).arg(&next))?;
        eventually(Duration::from_secs(10), "the store's disk to be free", || Ok(host.run(&["umount", STORE]).ok()))?;
        fs::remove_file(&self.image)?;
        self.image = next;
        self.attach(host)
    }
}
