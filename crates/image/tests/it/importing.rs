//! Archives as the tools of the field write them.

use serde_json::json;
use testkit::images::{BuiltImage, Compression, Layer, docker_archive, oci_archive};

use crate::fixture::{Fixture, small};

#[tokio::test]
async fn both_forms_are_imported_plain_and_compressed() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let image = small("imported");
        for archive in [oci_archive(&[("localhost/app:1", &image)]), docker_archive(&[("localhost/app:1", &image)])] {
            let fixture = Fixture::new();
            let imported = fixture.store.import(&compression.compress(&archive)[..]).await.unwrap();
            assert_eq!(imported[0].id.to_string(), image.config.digest);
            assert_eq!(imported[0].repo_tags, ["localhost/app:1"]);
            assert!(imported[0].repo_digests[0].starts_with("localhost/app@sha256:"));
            let found = fixture.pull_local("localhost/app:1").await;
            assert_eq!(std::fs::read_to_string(found.layers[0].join("content")).unwrap(), "imported");
            assert_eq!(fixture.leftovers(), 0);
        }
    }
}

#[tokio::test]
async fn several_images_share_layers_and_names_gather() {
    let fixture = Fixture::new();
    let one = small("one");
    let two = one.extend(&json!({"User": "5"}), &[Layer::new().file("more", 0o644, b"x").finish()], Compression::Zstd);
    let archive = docker_archive(&[("app:1", &one), ("app:2", &two)]);
    let imported = fixture.store.import(&archive[..]).await.unwrap();
    assert_eq!(imported[0].layers[0], imported[1].layers[1]);
    fixture.store.import(&oci_archive(&[("app:other", &one)])[..]).await.unwrap();
    let names = fixture.store.get("app:1").unwrap().repo_tags.clone();
    assert_eq!(names, ["docker.io/library/app:1", "docker.io/library/app:other"]);
}

#[tokio::test]
async fn docker_s_legacy_links_stay_inside() {
    let fixture = Fixture::new();
    let image = small("linked");
    let layer = image.tars[0].to_vec();
    let config = "c.json";
    let manifest = json!([{"Config": config, "RepoTags": ["app:1"], "Layers": ["old/layer.tar"]}]).to_string();
    let archive = Layer::new()
        .file("real.tar", 0o644, &layer)
        .dir("old", 0o755)
        .symlink("old/layer.tar", "../real.tar")
        .file(config, 0o644, &image.config.bytes)
        .file("manifest.json", 0o644, manifest.as_bytes());
    assert_eq!(fixture.store.import(&archive.finish()[..]).await.unwrap().len(), 1);

    let escape = manifest.replace("old/layer.tar", "secret");
    let archive = Layer::new().symlink("secret", "/etc/hostname").file(config, 0o644, &image.config.bytes).file(
        "manifest.json",
        0o644,
        escape.as_bytes(),
    );
    let error = fixture.store.import(&archive.finish()[..]).await.unwrap_err().to_string();
    assert!(error.contains("secret: No such file"), "{error}");
}

#[tokio::test]
async fn what_is_no_archive_says_so() {
    let fixture = Fixture::new();
    let import = async |bytes: &[u8]| fixture.store.import(bytes).await.unwrap_err().to_string();
    assert_eq!(import(b"").await, "not an OCI or docker image archive: it holds neither index.json nor manifest.json");
    assert!(import(b"hello").await.contains("it ends inside a header"));
    let image = small("x");
    let truncated = oci_archive(&[("app:1", &image)]);
    assert!(import(&truncated[..truncated.len() / 2]).await.starts_with("not an OCI or docker image archive: "));
    let mut changed = BuiltImage::clone(&image);
    changed.layers[0].bytes = Compression::Gzip.compress(b"other").into();
    let error = import(&oci_archive(&[("app:1", &changed)])).await;
    assert!(error.contains("is not of the digest and size"), "{error}");
    fixture.wait_until_clean().await;
}

impl Fixture {
    async fn pull_local(&self, name: &str) -> std::sync::Arc<image::store::Image> {
        let reference = image::reference::Reference::parse(name).unwrap();
        self.store.pull(&reference, &[], &image::pull::NoProgress).await.unwrap()
    }
}
