//! A store in a directory of its own, with a registry beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use image::credentials::Credentials;
use image::pull::{NoProgress, PullError};
use image::reference::Reference;
use image::registries::Registries;
use image::store::{Image, ImageStore};
use image::unpack::Unpacker;
use serde_json::json;
use testkit::images::{BuiltImage, Compression, Layer};
use testkit::registry::Registry;

pub struct Fixture {
    pub dir: PathBuf,
    pub registry: Registry,
    pub store: ImageStore,
}

pub fn unpacker() -> Unpacker {
    Unpacker { program: env!("CARGO_BIN_EXE_layer-unpack").into(), args: Vec::new() }
}

impl Fixture {
    pub fn new() -> Fixture {
        let registry = Registry::start().unwrap();
        let yaml = registry.registries_yaml(&["*"]);
        Fixture::with(registry, &yaml)
    }

    pub fn with(registry: Registry, yaml: &str) -> Fixture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-image-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let store = ImageStore::open(&dir, Registries::parse(yaml).unwrap(), unpacker()).unwrap();
        Fixture { dir, registry, store }
    }

    pub fn reopen(&mut self) {
        let registries = Registries::parse(&self.registry.registries_yaml(&["*"])).unwrap();
        self.store = ImageStore::open(&self.dir, registries, unpacker()).unwrap();
    }

    pub async fn pull(&self, name: &str) -> Result<Arc<Image>, PullError> {
        self.pull_as(name, &[]).await
    }

    pub async fn pull_as(&self, name: &str, credentials: &[Credentials]) -> Result<Arc<Image>, PullError> {
        self.store.pull(&self.name(name), credentials, &NoProgress).await
    }

    /// The name at this fixture's registry itself, which is asked without a mirror.
    pub fn name(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.registry.address())).unwrap()
    }

    /// Entries below `tmp`: what an operation left behind.
    pub fn leftovers(&self) -> usize {
        std::fs::read_dir(self.dir.join("tmp")).unwrap().count()
    }

    pub async fn wait_until_clean(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while self.leftovers() > 0 {
            assert!(std::time::Instant::now() < deadline, "temporary directories stay behind");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// An image of one layer with one file.
pub fn small(content: &str) -> BuiltImage {
    image_of(Layer::new().file("content", 0o644, content.as_bytes()))
}

pub fn image_of(layer: Layer) -> BuiltImage {
    BuiltImage::new(json!({"Cmd": ["run"]}), &[layer.finish()], Compression::Gzip)
}

/// `path kind mode uid:gid size link xattrs…` of everything in a layer, as `find` and `getfattr` see it.
pub fn listing(layer: &Path) -> String {
    let find = Command::new("find")
        .arg(layer)
        .args(["-mindepth", "1", "-printf", "%P %y %m %U:%G %s %n %l %T@\n"])
        .output()
        .unwrap();
    assert!(find.status.success());
    let mut lines: Vec<&str> = std::str::from_utf8(&find.stdout).unwrap().lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
