//! Layers and documents made to hurt: each is refused with a reason, or does no harm.

use expect_test::{Expect, expect};
use serde_json::json;
use tar::EntryType;
use testkit::images::{Blob, BuiltImage, Layer, OCI_MANIFEST};

use crate::fixture::{Fixture, image_of, listing};

/// Pulls an image with this layer and shows why it was refused, or what became of it.
async fn check(layer: Layer, expected: Expect) {
    check_image(&image_of(layer), expected).await;
}

async fn check_image(image: &BuiltImage, expected: Expect) {
    let fixture = Fixture::new();
    let canary = fixture.dir.join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    fixture.registry.add("app", "1", image);
    let shown = match fixture.pull("app:1").await {
        Ok(image) => listing(&image.layers[0])
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().0.trim_end().to_owned() + "\n")
            .collect(),
        Err(error) => {
            assert!(fixture.store.list().is_empty());
            fixture.wait_until_clean().await;
            error.cause.to_string().split_once(": ").map_or_else(|| error.to_string(), |(_, reason)| reason.to_owned())
        }
    };
    assert_eq!(std::fs::read_to_string(canary).unwrap(), "untouched");
    expected.assert_eq(&shown);
}

#[tokio::test]
async fn paths_that_climb_are_refused() {
    check(
        Layer::new().file("../canary", 0o644, b"x"),
        expect![[r#"archive is refused at byte 0: "../canary" climbs out with "..""#]],
    )
    .await;
    check(
        Layer::new().file("a/../../canary", 0o644, b"x"),
        expect![[r#"archive is refused at byte 0: "a/../../canary" climbs out with "..""#]],
    )
    .await;
    check(
        Layer::new().pax(&[("path", b"../../canary")]).file("x", 0o644, b"x"),
        expect![[r#"archive is refused at byte 1024: "../../canary" climbs out with "..""#]],
    )
    .await;
    check(
        Layer::new().pax(&[("path", b"a\0b")]).file("x", 0o644, b"x"),
        expect!["archive is refused at byte 1024: a name is too long or has a NUL byte"],
    )
    .await;
    check(Layer::new().file("", 0o644, b"x"), expect!["archive is refused at byte 0: an entry has no name"]).await;
    check(
        Layer::new().file("d/", 0o644, b"x"),
        expect!["archive is refused at byte 0: a file's name ends with a slash"],
    )
    .await;
    check(
        Layer::new().entry(EntryType::Symlink, ".", "/etc", 0o777, &[]),
        expect!["archive is refused at byte 0: the root can only be a directory"],
    )
    .await;
}

#[tokio::test]
async fn absolute_paths_count_from_the_layers_root() {
    check(
        Layer::new().file("/etc/passwd", 0o644, b"x"),
        expect![[r#"
        etc d 755 0:0 4096 2
        etc/passwd f 644 0:0 1 1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn links_lead_nowhere_outside() {
    // The link stays inside when it is followed, as the kernel would for a process whose root this is.
    check(
        Layer::new().dir("etc", 0o755).symlink("out", "/etc").file("out/x", 0o644, b"x"),
        expect![[r#"
            etc d 755 0:0 4096 2
            etc/x f 644 0:0 1 1
            out l 777 0:0 4 1 /etc
        "#]],
    )
    .await;
    check(
        Layer::new().symlink("out", "../../../../../../../../tmp").file("out/x", 0o644, b"x"),
        expect!["/out/x: its directory: File exists (os error 17)"],
    )
    .await;
    check(
        Layer::new().symlink("x", "/proc/self/cwd").file("x/y", 0o644, b"x"),
        expect!["/x/y: its directory: File exists (os error 17)"],
    )
    .await;
    // Writing over a link replaces the link.
    check(
        Layer::new().file("a", 0o644, b"old").symlink("b", "a").file("b", 0o644, b"new"),
        expect![[r#"
            a f 644 0:0 3 1
            b f 644 0:0 3 1
        "#]],
    )
    .await;
    // A directory that becomes a link does not carry later entries elsewhere.
    check(
        Layer::new().dir("d", 0o755).symlink("d", "/etc").file("d/x", 0o644, b"x"),
        expect!["/d/x: its directory: File exists (os error 17)"],
    )
    .await;
    check(
        Layer::new().symlink("x", ""),
        expect!["archive is refused at byte 0: a symbolic link has no target, or one too long or with a NUL byte"],
    )
    .await;
}

#[tokio::test]
async fn hard_links_reach_only_the_layers_own_files() {
    check(
        Layer::new().hard_link("x", "/etc/passwd"),
        expect!["/x: its hard link's target /etc/passwd is not in this layer"],
    )
    .await;
    check(
        Layer::new().hard_link("x", "../canary"),
        expect![[r#"archive is refused at byte 0: "../canary" climbs out with "..""#]],
    )
    .await;
    check(Layer::new().dir("d", 0o755).hard_link("x", "d"), expect!["/x: its hard link's target /d is no file"]).await;
    check(
        Layer::new().file(".wh.gone", 0, b"").hard_link("x", "gone"),
        expect!["/x: its hard link's target /gone is no file"],
    )
    .await;
    check(
        Layer::new()
            .file("a", 0o4755, b"x")
            .hard_link("b", "a")
            .hard_link("a", "b")
            .symlink("l", "/etc/passwd")
            .hard_link("m", "l"),
        expect![[r#"
            a f 4755 0:0 1 2
            b f 4755 0:0 1 2
            l l 777 0:0 11 2 /etc/passwd
            m l 777 0:0 11 2 /etc/passwd
        "#]],
    )
    .await;
}

#[tokio::test]
async fn devices_and_pipes_are_made_as_what_they_are() {
    check(
        Layer::new().owner(3, 4).char_device("null", 1, 3).fifo("pipe", 0o620),
        expect![[r#"
            null c 600 3:4 0 1
            pipe p 620 3:4 0 1
        "#]],
    )
    .await;
    check(Layer::new().char_device("x", 0, 0), expect!["/x: device 0:0 is overlayfs's whiteout"]).await;
}

#[tokio::test]
async fn whiteouts_become_overlayfs_own() {
    check(
        Layer::new().dir("d", 0o755).file("d/.wh.gone", 0o644, b"").file(".wh..wh.plnk", 0o644, b""),
        expect![[r#"
            d d 755 0:0 4096 2
            d/gone c 0 0:0 0 1
        "#]],
    )
    .await;
    check(Layer::new().file(".wh.", 0o644, b""), expect!["/.wh.: a whiteout must name what it hides"]).await;
    check(Layer::new().file(".wh..", 0o644, b""), expect!["/.wh..: a whiteout must name what it hides"]).await;
    check(Layer::new().file(".wh...", 0o644, b""), expect!["/.wh...: a whiteout must name what it hides"]).await;
    check(Layer::new().file(".wh.x", 0o644, b"content"), expect!["/.wh.x: a whiteout must be an empty file"]).await;
    check(Layer::new().dir(".wh.x", 0o755), expect!["/.wh.x: a whiteout must be an empty file"]).await;
    // A whiteout hides what lies below, not what the layer itself brings.
    check(
        Layer::new().file("x", 0o644, b"1").file(".wh.x", 0, b"").file(".wh.y", 0, b"").file("y", 0o644, b"2"),
        expect![[r#"
            x f 644 0:0 1 1
            y f 644 0:0 1 1
        "#]],
    )
    .await;
}

#[tokio::test]
async fn opaque_directories_are_marked_and_foreign_marks_dropped() {
    let fixture = Fixture::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .dir("d", 0o755)
        .file("d/.wh..wh..opq", 0, b"")
        .file(".wh.e", 0, b"")
        .dir("e", 0o755)
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"n")])
        .file("f", 0o755, b"")
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.overlay.opaque", b"y")])
        .dir("g", 0o755);
    fixture.registry.add("app", "1", &image_of(layer));
    let layer = fixture.pull("app:1").await.unwrap().layers[0].clone();
    let xattr = |name: &str, key: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(layer.join(name), key, &mut value).ok().map(|length| value[..length].to_vec())
    };
    assert_eq!(xattr("d", "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(xattr("e", "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(xattr("f", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr("f", "user.note").as_deref(), Some(&b"n"[..]));
    assert_eq!((xattr("g", "trusted.overlay.redirect"), xattr("g", "user.overlay.opaque")), (None, None));
}

#[tokio::test]
async fn headers_that_disagree_are_refused() {
    check(
        Layer::new().pax(&[("size", b"0")]).file("x", 0o644, b"hidden"),
        expect!["archive is refused at byte 1024: pax and ustar disagree on the size: 0 and 6"],
    )
    .await;
    check(
        Layer::new().pax(&[("size", b"3")]).file("x", 0o644, b"hidden"),
        expect!["archive is refused at byte 1024: pax and ustar disagree on the size: 3 and 6"],
    )
    .await;
    check(
        Layer::new()
            .entry(EntryType::GNULongName, "././@LongLink", "", 0, b"one\0")
            .pax(&[("path", b"two")])
            .file("x", 0o644, b""),
        expect!["archive is refused at byte 2048: pax and GNU headers disagree on the path"],
    )
    .await;
    check(
        Layer::new().pax(&[("path", b"a"), ("path", b"b")]).file("x", 0o644, b""),
        expect![[r#"archive is refused at byte 0: pax key "path" stands twice"#]],
    )
    .await;
    check(
        Layer::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("x", 0o644, b""),
        expect!["archive is refused at byte 1024: two pax headers for one entry"],
    )
    .await;
    check(
        Layer::new().pax(&[("GNU.sparse.major", b"1")]).file("x", 0o644, b""),
        expect!["archive is refused at byte 0: sparse files are not supported"],
    )
    .await;
    check(
        Layer::new().entry(EntryType::GNUSparse, "x", "", 0o644, b""),
        expect!["archive is refused at byte 0: sparse files are not supported"],
    )
    .await;
    check(
        Layer::new().entry(EntryType::Symlink, "x", "y", 0o777, b"hidden"),
        expect!["archive is refused at byte 0: an entry that is no file has content"],
    )
    .await;
    check(
        Layer::new().entry(EntryType::XGlobalHeader, "g", "", 0, b"10 path=a\n"),
        expect![[r#"archive is refused at byte 0: pax key "path" stands in a global header"#]],
    )
    .await;
    check(
        Layer::new().entry(EntryType::XHeader, "x", "", 0, b"99 path=a\n").file("x", 0, b""),
        expect!["archive is refused at byte 0: a pax record is malformed"],
    )
    .await;
    check(
        Layer::new().entry(EntryType::new(b'V'), "x", "", 0, b""),
        expect!["archive is refused at byte 0: entry type 'V' is not supported"],
    )
    .await;
    check(
        Layer::new().pax(&[("uid", b"4294967295")]).file("x", 0, b""),
        expect!["archive is refused at byte 1024: user or group 4294967295 is out of range"],
    )
    .await;
    check(
        Layer::new().pax(&[("path", b"x")]),
        expect!["archive is damaged at byte 1024: it ends after an extended header"],
    )
    .await;
}

#[tokio::test]
async fn what_honest_archives_contain_is_read() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    check(
        Layer::new()
            .entry(
                EntryType::XGlobalHeader,
                "pax_global_header",
                "",
                0o666,
                b"52 comment=0123456789abcdef0123456789abcdef01234567\n",
            )
            .file("a", 0o644, b"x"),
        expect![[r#"
            a f 644 0:0 1 1
        "#]],
    )
    .await;
    let fixture = Fixture::new();
    let layer = Layer::new()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1234567890.25"), ("uid", b"100000"), ("atime", b"1.5")])
        .file("short", 0o640, b"x")
        .dir("./", 0o711)
        .file("twice", 0o600, b"1")
        .file("twice", 0o640, b"22");
    fixture.registry.add("app", "1", &image_of(layer));
    let image = fixture.pull("app:1").await.unwrap();
    let shown = listing(&image.layers[0]);
    let file = shown.lines().find(|line| line.starts_with(&long)).unwrap();
    assert_eq!(file.strip_prefix(&long), Some(" f 640 100000:0 1 1  1234567890.2500000000"));
    assert!(shown.contains("twice f 640 0:0 2 1"), "{shown}");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&image.layers[0]).unwrap().permissions().mode() & 0o7777, 0o711);
}

#[tokio::test]
async fn documents_that_lie_are_refused() {
    let good = image_of(Layer::new().file("x", 0o644, b"x"));
    let with_config = |config: serde_json::Value| {
        BuiltImage::from_parts(
            Blob::json("application/vnd.oci.image.config.v1+json", &config),
            good.layers.clone(),
            &[],
        )
    };
    let other = format!("sha256:{}", "0".repeat(64));
    let lying = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [other]}});
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &with_config(lying));
    let error = fixture.pull("app:1").await.unwrap_err().to_string();
    assert!(error.contains("the layer's diff ID is sha256:"), "{error}");
    fixture.registry.add(
        "app",
        "2",
        &with_config(json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})),
    );
    let error = fixture.pull("app:2").await.unwrap_err().to_string();
    assert!(error.ends_with("image has 0 layers, 1 to 500 are possible"), "{error}");
    fixture.wait_until_clean().await;
}

#[tokio::test]
async fn ambiguous_manifests_are_refused() {
    let good = image_of(Layer::new().file("x", 0o644, b"x"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&good.manifest.bytes).unwrap();
    manifest["manifests"] = json!([]);
    let fixture = Fixture::new();
    fixture.registry.add_blobs(&good);
    fixture.registry.add_manifest("app", "1", &Blob::json(OCI_MANIFEST, &manifest));
    let error = fixture.pull("app:1").await.unwrap_err().to_string();
    assert!(error.ends_with("manifest is not valid: it must have either config and layers or manifests"), "{error}");
}

/// GNU tar packs a tree in each of its formats; we must make the same tree of it.
#[tokio::test]
async fn gnu_tars_own_archives_become_the_same_tree() {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    let fixture = Fixture::new();
    let tree = fixture.dir.join("tree");
    let deep = tree
        .join("a-directory-with-a-rather-long-name/and-another-one-in-it/so-that-the-whole-is-longer-than-a-hundred");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), vec![b'x'; 70_000]).unwrap();
    std::fs::write(tree.join("tool"), "#!/bin/sh").unwrap();
    chown(tree.join("tool"), Some(1234), Some(56)).unwrap();
    std::fs::set_permissions(tree.join("tool"), std::fs::Permissions::from_mode(0o6751)).unwrap();
    std::fs::hard_link(tree.join("tool"), tree.join("tool-again")).unwrap();
    symlink("/absolute/and/dangling", tree.join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    std::fs::write(tree.join("n\u{fc}mlaut and space"), "").unwrap();
    let expected = listing(&tree);
    for format in ["gnu", "pax", "ustar"] {
        let packed = std::process::Command::new("tar")
            .args(["--format", format, "-C"])
            .arg(&tree)
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(packed.status.success());
        let image = testkit::images::BuiltImage::new(json!({}), &[packed.stdout], testkit::images::Compression::None);
        fixture.registry.add("app", format, &image);
        let image = fixture.pull(&format!("app:{format}")).await.unwrap();
        let found = listing(&image.layers[0]);
        match format {
            "pax" => assert_eq!(found, expected),
            // The older formats keep whole seconds.
            _ => assert_eq!(whole_seconds(&found), whole_seconds(&expected), "{format}"),
        }
    }
}

fn whole_seconds(listing: &str) -> Vec<&str> {
    listing.lines().map(|line| line.rsplit_once('.').unwrap().0).collect()
}
