//! What registries and images say.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use image::credentials;
use image::reference::Reference;
use image::registries::Registries;
use rustix::fs::{Mode, OFlags};

use crate::text;

pub(crate) fn reference(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(reference) = Reference::parse(text) else { return };
    let written = reference.to_string();
    assert_eq!(Reference::parse(&written).as_ref(), Ok(&reference), "{written:?}");
}

pub(crate) fn manifest(bytes: &[u8]) {
    image::fuzz::manifest(bytes);
}

pub(crate) fn config(bytes: &[u8]) {
    image::fuzz::config(bytes);
}

pub(crate) fn registries(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        drop(Registries::parse(text));
    }
    drop(credentials::from_docker_config_json(bytes));
    drop(credentials::from_docker_cfg(bytes));
}

pub(crate) fn tar(bytes: &[u8]) {
    image::fuzz::tar(bytes);
}

/// A directory that goes with its holder.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
            // In memory where there is such a place: thousands are made.
            let memory = Path::new("/dev/shm");
            let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
            base.join(format!("coracle-fuzz-{}", std::process::id()))
        });
        let path = BASE.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(path.join("layer")).expect("a directory of our own");
        fs::write(path.join("outside"), "untouched").expect("a file of our own");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is in a directory for passing things.
        drop(fs::remove_dir_all(&self.0));
        drop(self.0.parent().map(fs::remove_dir));
    }
}

/// Unpacks a layer and looks whether it stayed where it belongs.
pub(crate) fn layer(bytes: &[u8]) {
    let scratch = Scratch::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(scratch.0.join("layer"), flags, Mode::empty()).expect("it was made just now");
    image::fuzz::layer(bytes, root);
    let mut names: Vec<_> = fs::read_dir(&scratch.0).expect("it is ours").flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["layer", "outside"]);
    assert_eq!(fs::read_to_string(scratch.0.join("outside")).expect("it is ours"), "untouched");
}
