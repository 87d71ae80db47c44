//! Pulled images as containers see them: through overlayfs.

use std::process::Command;

use image::store::Image;
use serde_json::json;
use testkit::debian::Debian;
use testkit::images::{BuiltImage, Compression, Layer};
use testkit::stand_ins;

use crate::fixture::Fixture;

/// Runs a shell line of the host in a mount namespace of its own, where /mnt is the image's overlay.
fn in_overlay(fixture: &Fixture, image: &Image, line: &str) -> String {
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.display().to_string()).collect();
    let (upper, work) = (fixture.dir.join("upper"), fixture.dir.join("work"));
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
    let script = format!("mount -t overlay overlay -o '{options}' /mnt && {line}");
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn upper_layers_hide_what_their_whiteouts_name() {
    let fixture = Fixture::new();
    let lower =
        Layer::new().file("gone", 0o644, b"").file("kept", 0o644, b"").dir("d", 0o755).file("d/old", 0o644, b"");
    let upper =
        Layer::new().file(".wh.gone", 0, b"").dir("d", 0o755).file("d/.wh..wh..opq", 0, b"").file("d/new", 0o644, b"");
    let image = BuiltImage::new(json!({}), &[lower.finish(), upper.finish()], Compression::Gzip);
    fixture.registry.add("app", "1", &image);
    let image = fixture.pull("app:1").await.unwrap();
    assert_eq!(in_overlay(&fixture, &image, "cd /mnt && find . -type f | sort"), "./d/new\n./kept\n");
}

#[tokio::test]
async fn stand_ins_are_whole() {
    let fixture = Fixture::new();
    let debian = Debian::new();
    fixture.registry.add("website", "1", &stand_ins::website(&debian, &[("index.html", "hello")]).unwrap());
    fixture.registry.add("library", "1", &stand_ins::library(&debian).unwrap());
    let website = fixture.pull("website:1").await.unwrap();
    assert_eq!((website.config.user.as_str(), website.config.working_dir.as_str()), ("static", "/home/static"));
    let line = "chroot /mnt busybox cat /home/static/index.html && chroot --userspec=1000:1000 /mnt whoami";
    assert_eq!(in_overlay(&fixture, &website, line), "hellostatic\n");
    let library = fixture.pull("library:1").await.unwrap();
    assert_eq!(library.config.volumes, ["/config"]);
    assert_eq!(in_overlay(&fixture, &library, "chroot /mnt /app/sqlite3 :memory: 'select 6*7'"), "42\n");
    assert_eq!(website.layers.last(), library.layers.last());
}
