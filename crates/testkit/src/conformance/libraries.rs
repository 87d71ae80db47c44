//! Programs of Debian packages together with the shared libraries that they are linked with, as a layer for an image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::debian::Debian;
use crate::host::checked;
use crate::images::Layer;

/// A program: its package, its path there, and the paths that it gets in the image.
pub type Program = (&'static str, &'static str, &'static [&'static str]);

/// Puts programs and their libraries on top of a layer.
///
/// # Errors
/// When a package cannot be fetched, or lacks the program.
pub fn with_programs(debian: &Debian, mut layer: Layer, programs: &[Program]) -> Result<Layer> {
    let libc = library_directory(&debian.unpacked("libc6")?)?;
    let loader = loader_in(&libc)?;
    let mut libraries: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (package, path, targets) in programs {
        let program = debian.unpacked(package)?.join(path);
        let content = fs::read(&program).with_context(|| format!("could not read {}", program.display()))?;
        for target in *targets {
            layer = layer.file(target, 0o755, &content);
        }
        let mut directories = vec![libc.display().to_string()];
        for dependency in debian.libraries_of(package)? {
            // Packages without libraries are no reason to fail: the loader tells what is missing.
            directories.extend(library_directory(&debian.unpacked(&dependency)?).ok().map(|d| d.display().to_string()));
        }
        let listed =
            checked(Command::new(&loader).arg("--library-path").arg(directories.join(":")).arg("--list").arg(&program))
                .with_context(|| format!("could not find the libraries of {path}"))?;
        libraries.extend(named_in(&listed));
    }
    layer = layer.dir("lib", 0o755).dir("lib64", 0o755);
    for (name, path) in &libraries {
        let content = fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        layer = layer.file(&format!("lib/{name}"), 0o755, &content);
    }
    let name = loader.file_name().context("a loader has a name")?.to_string_lossy();
    let directory = if name.contains("x86-64") { "lib64" } else { "lib" };
    Ok(layer.file(&format!("{directory}/{name}"), 0o755, &fs::read(&loader)?))
}

/// `usr/lib/x86_64-linux-gnu` and the like.
fn library_directory(root: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(root.join("usr/lib")).with_context(|| format!("{} has no libraries", root.display()))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().ends_with("-linux-gnu"));
    Ok(found.with_context(|| format!("{} has no libraries", root.display()))?.path())
}

fn loader_in(libc: &Path) -> Result<PathBuf> {
    let found = fs::read_dir(libc)?.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with("ld-linux"));
    Ok(found.with_context(|| format!("{} has no loader", libc.display()))?.path())
}

/// What a loader's list says: `libuv.so.1 => /somewhere/libuv.so.1 (0x…)`.
fn named_in(listed: &str) -> BTreeMap<String, PathBuf> {
    let line = |line: &str| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let (path, _) = rest.rsplit_once(" (0x")?;
        (!name.contains('/')).then(|| (name.to_owned(), PathBuf::from(path)))
    };
    listed.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_loaders_list() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\tlibuv.so.1 => /d/usr/lib/libuv.so.1 (0x7f00)\n\t/lib64/ld-linux-x86-64.so.2 => /d/ld (0x7f)\n";
        assert_eq!(
            named_in(listed),
            BTreeMap::from([("libuv.so.1".to_owned(), PathBuf::from("/d/usr/lib/libuv.so.1"))])
        );
    }
}
