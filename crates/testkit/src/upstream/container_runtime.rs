//! containerd, runc, crun and the CNI plugins from Debian packages, on whatever Debian this machine runs.
//!
//! The programs are of the newest suite. containerd and the plugins ask little of the C library; runc and crun ask for the suite's
//! own, so they are told to take it, and their other libraries, from where the packages lie unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::{Debian, crate_target};
use crate::host::checked;

/// The first suite with containerd 2.
const SUITE: &str = "sid";
const LOADER: &str = if cfg!(target_arch = "aarch64") { "ld-linux-aarch64.so.1" } else { "ld-linux-x86-64.so.2" };
/// What runc and crun are linked with.
const LIBRARIES: &[&str] =
    &["libc6", "libseccomp2", "libcap2", "libjson-c5", "libsystemd0", "libblake3-0", "libgcc-s1", "libstdc++6"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct ContainerRuntime {
    pub containerd: PathBuf,
    pub ctr: PathBuf,
    pub runc: PathBuf,
    pub crun: PathBuf,
    /// The directory of the CNI plugins.
    pub plugins: PathBuf,
    /// The directory of containerd's shims, for PATH.
    pub shims: PathBuf,
}

impl ContainerRuntime {
    /// Fetches what is not there yet.
    ///
    /// # Errors
    /// When a package cannot be had, or holds another thing than it used to.
    pub fn unpacked() -> Result<Self> {
        let debian = Debian::in_cache(&crate_target().join("debian"), SUITE);
        let tree = |package: &str| -> Result<PathBuf> { Ok(fs::canonicalize(debian.unpacked(package)?)?) };
        let containerd = tree("containerd")?.join("usr/bin");
        let kept = crate_target().join("container-runtime");
        fs::create_dir_all(&kept)?;
        let kept = fs::canonicalize(kept)?;
        let libraries = kept.join("lib");
        if !libraries.is_dir() {
            gather(&debian, &libraries)?;
        }
        let mut found = Vec::new();
        for (package, program) in [("runc", "usr/sbin/runc"), ("crun", "usr/bin/crun")] {
            let to = kept.join(package);
            if !to.is_file() {
                relink(&tree("patchelf")?.join("usr/bin/patchelf"), &tree(package)?.join(program), &libraries, &to)?;
            }
            found.push(to);
        }
        let [runc, crun] = found.try_into().expect("two programs are found above");
        Ok(Self {
            ctr: containerd.join("ctr"),
            runc,
            crun,
            plugins: tree("containernetworking-plugins")?.join("usr/lib/cni"),
            shims: containerd.clone(),
            containerd: containerd.join("containerd"),
        })
    }
}

/// Puts the libraries of all packages into one directory, whole or not at all.
fn gather(debian: &Debian, to: &Path) -> Result<()> {
    let unfinished = to.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&unfinished)?;
    for package in LIBRARIES {
        let from = debian.unpacked(package)?.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        checked(Command::new("cp").arg("-a").arg(from.join(".")).arg(&unfinished))
            .with_context(|| format!("could not copy the libraries of {package}"))?;
    }
    Ok(fs::rename(unfinished, to)?)
}

/// Copies a program, with the loader and the directory of its libraries written into it.
fn relink(patchelf: &Path, program: &Path, libraries: &Path, to: &Path) -> Result<()> {
    let unfinished = to.with_extension(format!("new-{}", std::process::id()));
    fs::copy(program, &unfinished).with_context(|| format!("could not copy {}", program.display()))?;
    let loader = libraries.join(LOADER);
    // patchelf is of the same suite: it runs with the same loader.
    checked(
        Command::new(&loader)
            .arg("--library-path")
            .arg(libraries)
            .arg(patchelf)
            .arg("--set-interpreter")
            .arg(&loader)
            .args(["--force-rpath", "--set-rpath"])
            .arg(libraries)
            .arg(&unfinished),
    )?;
    Ok(fs::rename(unfinished, to)?)
}
