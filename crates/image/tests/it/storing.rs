//! The store over time: restarts, crashes, other processes, removal and collection.

use std::collections::BTreeSet;
use std::time::Duration;

use image::gc::Policy;
use image::registries::Registries;
use image::store::{ImageStore, StoreError};
use serde_json::json;
use testkit::images::{BuiltImage, Compression, Layer};

use crate::fixture::{Fixture, small, unpacker};

/// Collects every unused image.
fn everything() -> Policy {
    Policy { max_age: Some(Duration::ZERO), ..Policy::default() }
}

#[tokio::test]
async fn images_are_known_after_a_restart() {
    let mut fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("kept"));
    let image = fixture.pull("app:1").await.unwrap();
    fixture.reopen();
    assert_eq!(fixture.store.list(), std::slice::from_ref(&image));
    assert_eq!(fixture.store.get(&image.id.hex()[..12]), Some(image.clone()));
    assert_eq!(fixture.store.get(&image.id.to_string()), Some(image.clone()));
    assert_eq!(fixture.store.get(&image.repo_digests[0]), Some(image));
    assert_eq!(fixture.store.get("nothing"), None);
}

#[tokio::test]
async fn another_process_sees_what_this_one_changes() {
    let fixture = Fixture::new();
    let other = ImageStore::open(&fixture.dir, Registries::default(), unpacker()).unwrap();
    fixture.registry.add("app", "1", &small("shared"));
    let image = fixture.pull("app:1").await.unwrap();
    assert_eq!(other.list(), std::slice::from_ref(&image));
    other.remove(&image.id.to_string()).await.unwrap();
    assert!(fixture.store.list().is_empty());
}

#[tokio::test]
async fn damage_found_after_a_crash_is_healed_by_the_next_pull() {
    let mut fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("healed"));
    let name = fixture.name("app:1").to_string();
    let layer = fixture.pull("app:1").await.unwrap().layers[0].clone();
    std::fs::write(layer.join("content"), "heal").unwrap();
    // Within one boot the page cache is the truth; a note from another boot means that the machine went down.
    fixture.reopen();
    assert!(fixture.store.get(&name).is_some());
    std::fs::write(fixture.dir.join("boot"), "another-boot open\n").unwrap();
    fixture.reopen();
    assert_eq!(fixture.store.get(&name), None);
    let again = fixture.pull("app:1").await.unwrap();
    assert_eq!(std::fs::read_to_string(again.layers[0].join("content")).unwrap(), "healed");
}

#[tokio::test]
async fn an_orderly_shutdown_needs_no_check() {
    let mut fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("x"));
    let layer = fixture.pull("app:1").await.unwrap().layers[0].clone();
    fixture.store.close().unwrap();
    let note = std::fs::read_to_string(fixture.dir.join("boot")).unwrap();
    std::fs::write(fixture.dir.join("boot"), format!("another-boot {}", note.split_once(' ').unwrap().1)).unwrap();
    std::fs::write(layer.join("content"), "changed").unwrap();
    fixture.reopen();
    assert_eq!(fixture.store.list().len(), 1);
}

#[tokio::test]
async fn a_layer_without_its_marker_does_not_exist() {
    let mut fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("half"));
    let layer = fixture.pull("app:1").await.unwrap().layers[0].clone();
    std::fs::remove_file(layer.parent().unwrap().join("complete")).unwrap();
    std::fs::create_dir_all(fixture.dir.join("tmp/4194304-7/fs")).unwrap();
    fixture.reopen();
    assert!(fixture.store.list().is_empty());
    assert_eq!(fixture.leftovers(), 0);
    fixture.pull("app:1").await.unwrap();
    assert_eq!(fixture.store.list().len(), 1);
}

#[tokio::test]
async fn a_damaged_list_is_set_aside() {
    let mut fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("x"));
    fixture.pull("app:1").await.unwrap();
    std::fs::write(fixture.dir.join("images.json"), "{\"format\": 1, \"ima").unwrap();
    fixture.reopen();
    assert!(fixture.store.list().is_empty() && fixture.dir.join("images.json.damaged").exists());
    fixture.pull("app:1").await.unwrap();
}

/// One process is killed at ever later moments of its pull; the next one finds whole images or none.
#[tokio::test]
async fn a_killed_process_leaves_whole_images_or_none() {
    const CHILD: &str = "CORACLE_TEST_PULL_IN";
    if let Ok(place) = std::env::var(CHILD) {
        let (dir, name) = place.split_once(' ').unwrap();
        let store = ImageStore::open(dir.as_ref(), Registries::default(), unpacker()).unwrap();
        store.pull(&name.parse().unwrap(), &[], &image::pull::NoProgress).await.unwrap();
        return;
    }
    let mut fixture = Fixture::new();
    let content = "0123456789abcdef".repeat(4096);
    let layer = |number: u32| {
        let files = (0..40)
            .fold(Layer::new(), |layer, file| layer.file(&format!("{number}-{file}"), 0o644, content.as_bytes()));
        files.finish()
    };
    for round in 0..12_u32 {
        let tag = round.to_string();
        fixture.registry.add(
            "app",
            &tag,
            &BuiltImage::new(json!({}), &[layer(round), layer(round + 100)], Compression::Gzip),
        );
        let place = format!("{} {}", fixture.dir.display(), fixture.name(&format!("app:{tag}")));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "storing::a_killed_process_leaves_whole_images_or_none"])
            .env(CHILD, place)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 12)).await; // the moment of the crash
        let _ = child.kill();
        let _ = child.wait();
        fixture.reopen();
        for image in fixture.store.list() {
            assert_eq!(image.layers.len(), 2);
            for layer in &image.layers {
                let files: Vec<_> = std::fs::read_dir(layer).unwrap().map(|entry| entry.unwrap().path()).collect();
                assert_eq!(files.len(), 40);
                assert!(files.iter().all(|file| std::fs::read_to_string(file).unwrap() == content));
            }
        }
        fixture.pull(&format!("app:{tag}")).await.unwrap();
    }
    // Children that unpacked for the killed process end with their input; what they left goes at the next start.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while fixture.leftovers() > 0 {
        assert!(std::time::Instant::now() < deadline);
        fixture.reopen();
    }
    assert_eq!(fixture.store.list().len(), 12);
}

#[tokio::test]
async fn two_processes_may_pull_the_same_image() {
    let fixture = Fixture::new();
    let other = ImageStore::open(&fixture.dir, Registries::default(), unpacker()).unwrap();
    fixture.registry.add("app", "1", &small("twice"));
    let name = fixture.name("app:1");
    let pulls = tokio::join!(
        fixture.store.pull(&name, &[], &image::pull::NoProgress),
        other.pull(&name, &[], &image::pull::NoProgress)
    );
    assert_eq!(pulls.0.unwrap(), pulls.1.unwrap());
    fixture.wait_until_clean().await;
}

#[tokio::test]
async fn an_unknown_format_is_left_alone() {
    let fixture = Fixture::new();
    let list = fixture.dir.join("images.json");
    std::fs::write(&list, r#"{"format": 9, "images": []}"#).unwrap();
    let opened = ImageStore::open(&fixture.dir, Registries::default(), unpacker());
    assert!(matches!(opened.err().unwrap(), StoreError::Format { .. }));
    assert_eq!(std::fs::read_to_string(&list).unwrap(), r#"{"format": 9, "images": []}"#);
}

#[tokio::test]
async fn removal_takes_names_then_the_image_then_its_own_layers() {
    let fixture = Fixture::new();
    let base = small("base");
    let top = base.extend(&json!({}), &[Layer::new().file("top", 0o644, b"x").finish()], Compression::Gzip);
    fixture.registry.add("app", "1", &base);
    fixture.registry.add("app", "2", &top);
    fixture.registry.add("app", "also", &top);
    let base = fixture.pull("app:1").await.unwrap();
    let top = fixture.pull("app:2").await.unwrap();
    fixture.pull("app:also").await.unwrap();
    fixture.store.remove(&fixture.name("app:2").to_string()).await.unwrap();
    assert_eq!(fixture.store.get(&top.id.to_string()).unwrap().repo_tags, [fixture.name("app:also").to_string()]);
    fixture.store.remove(&fixture.name("app:also").to_string()).await.unwrap();
    assert_eq!(fixture.store.list(), std::slice::from_ref(&base));
    assert!(base.layers[0].is_dir() && !top.layers[0].exists());
    assert!(matches!(fixture.store.remove("gone").await, Err(StoreError::NoSuchImage(_))));
}

#[tokio::test]
async fn a_held_image_stays_until_it_is_let_go() {
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("x"));
    fixture.registry.add("app", "2", &small("x"));
    fixture.pull("app:1").await.unwrap();
    let image = fixture.pull("app:2").await.unwrap();
    let holds = (fixture.store.hold(&image.id), fixture.store.hold(&image.id));
    fixture.store.remove(&fixture.name("app:2").to_string()).await.unwrap();
    drop(holds.0);
    for name in [fixture.name("app:1").to_string(), image.id.to_string()] {
        assert!(matches!(fixture.store.remove(&name).await, Err(StoreError::InUse(_))));
    }
    assert!(fixture.store.collect(&everything(), &BTreeSet::new()).await.unwrap().images.is_empty());
    assert!(image.layers[0].exists());
    drop(holds.1);
    fixture.store.remove(&image.id.to_string()).await.unwrap();
    assert!(!image.layers[0].exists());
}

#[tokio::test]
async fn collection_spares_what_is_used_or_pinned() {
    let fixture = Fixture::new();
    for tag in ["used", "pinned", "idle"] {
        fixture.registry.add("app", tag, &small(tag));
    }
    let used = fixture.pull("app:used").await.unwrap();
    let pinned = fixture.pull("app:pinned").await.unwrap();
    let idle = fixture.pull("app:idle").await.unwrap();
    fixture.store.pin(&pinned.id, true).await.unwrap();
    let before = fixture.store.usage().unwrap();
    let collected = fixture.store.collect(&everything(), &BTreeSet::from([used.id.clone()])).await.unwrap();
    assert_eq!(collected.images, std::slice::from_ref(&idle));
    assert!(!idle.layers[0].exists() && used.layers[0].exists());
    assert_eq!(fixture.store.usage().unwrap().bytes, before.bytes - collected.freed_bytes);
    assert!(fixture.store.get(&pinned.id.to_string()).unwrap().pinned);
}

#[tokio::test]
async fn a_layer_that_stands_twice_is_listed_once() {
    let fixture = Fixture::new();
    let (empty, other) = (Layer::new().finish(), Layer::new().file("x", 0o644, b"x").finish());
    let image = BuiltImage::new(json!({}), &[empty.clone(), other, empty], Compression::Gzip);
    fixture.registry.add("app", "1", &image);
    let image = fixture.pull("app:1").await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert!(image.layers[1].join("x").exists());
}
