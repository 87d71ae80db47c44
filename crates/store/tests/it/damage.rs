//! Damage that no crash explains: every flipped byte is found or harmless, and what is refused stays as it is.

use std::path::Path;

use store::Store;
use store::durable::{OpenError, Options, open};
use store::seal::Keyring;

use crate::model::{Contents, Script, contents, key, open_sim, options, put};
use crate::sim::{Event, Image, SeededRng, SimVfs};

/// A store of a checkpoint and some segments, its contents, and its last revision.
async fn store(seed: u64, close: bool) -> (Image, Contents, u64) {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let mut script = Script::new(seed);
    // Enough for a segment to begin after a checkpoint has become due.
    while written(&disk) < 9000 {
        let (compares, ops, lazy) = script.next();
        if !lazy {
            store.txn(compares, ops).await.ok();
        }
    }
    while !is_settled(&disk.image()) {
        std::thread::yield_now();
    }
    let ops = vec![put("/core/secrets/default/last", "hunter2"), put("/core/pods/default/last", "1")];
    store.txn(vec![], ops).await.unwrap();
    let (found, revision) = (contents(&store.snapshot()), store.snapshot().revision());
    if close {
        store.close().await.unwrap();
    }
    drop(store);
    (disk.image(), found, revision)
}

fn written(disk: &SimVfs) -> usize {
    disk.events().iter().map(|event| if let Event::Write { data, .. } = event { data.len() } else { 0 }).sum()
}

/// Whether a checkpoint is in place and what it replaces is gone.
fn is_settled(image: &Image) -> bool {
    let names: Vec<_> = image.names.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let numbers = |prefix| names.iter().filter_map(move |name| name.strip_prefix(prefix)).collect::<Vec<_>>();
    let (checkpoints, segments) = (numbers("checkpoint-"), numbers("log-"));
    checkpoints.len() == 1 && !checkpoints[0].contains('.') && segments.iter().all(|n| *n >= checkpoints[0])
}

async fn check_flips(close: bool) {
    let (image, expected, revision) = store(21, close).await;
    let (mut found, mut harmless) = (0, 0);
    for (path, data) in image.files() {
        for at in 0..data.len() {
            let mut bad = image.clone();
            bad.edit(&path)[at] ^= [0x01, 0x80, 0xff][at % 3];
            let before = bad.files();
            let disk = SimVfs::new(bad);
            match open_sim(&disk) {
                Ok(store) => {
                    let place = format!("byte {at} of {}", path.display());
                    assert_eq!(contents(&store.snapshot()), expected, "{place}");
                    assert!(store.snapshot().revision() >= revision, "{place}");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(
                        matches!(&error, OpenError::Damaged { repair, .. } if !repair.is_empty()) || refused(&error)
                    );
                    assert!(error.to_string().contains(path.parent().unwrap().to_str().unwrap()), "{error}");
                    assert_eq!(disk.image().files(), before, "a refused store was changed");
                    found += 1;
                }
            }
        }
    }
    println!("of {} flipped bytes {found} were found and {harmless} were harmless", found + harmless);
    assert!(found > 2000);
}

fn refused(error: &OpenError) -> bool {
    matches!(error, OpenError::Version { .. } | OpenError::Key { .. })
}

#[tokio::test]
async fn a_flipped_byte_is_found_or_harmless() {
    check_flips(false).await;
}

#[tokio::test]
async fn a_flipped_byte_of_a_closed_store_is_found_or_harmless() {
    check_flips(true).await;
}

#[tokio::test]
async fn repeated_blocks_and_missing_files_are_found() {
    const BLOCK: usize = 512;
    let (image, expected, _) = store(22, false).await;
    for (path, data) in image.files() {
        let blocks = data.len() / BLOCK;
        for (a, b) in (0..blocks).flat_map(|a| (0..blocks).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let source = a * BLOCK..(a + 1) * BLOCK;
            if data[source.clone()].iter().all(|byte| *byte == 0) {
                // The last frame without one of its sectors is what a crash leaves of an unfinished write.
                continue;
            }
            let mut repeated = image.clone();
            repeated.edit(&path).copy_within(source, b * BLOCK);
            if let Ok(store) = open_sim(&SimVfs::new(repeated)) {
                let same = contents(&store.snapshot()) == expected;
                assert!(same, "block {a} over {b} of {}", path.display());
            }
        }
        if Some(&path) == image.names.keys().next_back() {
            // Nothing tells that there was one more segment.
            continue;
        }
        let mut missing = image.clone();
        missing.names.remove(&path);
        let error = open_sim(&SimVfs::new(missing)).err();
        assert!(matches!(error, Some(OpenError::Damaged { .. })), "without {}: {error:?}", path.display());
    }
}

#[tokio::test]
async fn the_way_out_of_a_damaged_log_works() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    for n in 0..3 {
        store.txn(vec![], vec![put(&format!("/core/pods/default/{n}"), &"x".repeat(100))]).await.unwrap();
    }
    drop(store);
    let (mut image, path) = (disk.image(), Path::new("/var/store/log-0000000000000001"));
    image.edit(path)[96 + 256 + 64] ^= 1;
    let error = open_sim(&SimVfs::new(image.clone())).err().unwrap();
    let OpenError::Damaged { offset, .. } = &error else { panic!("{error}") };
    expect_test::expect![[r#"/var/store/log-0000000000000001 is damaged at byte 352: the frame does not match its checksum; restore the directory from a backup, or, to lose every write after revision 2, run `truncate -s 352 /var/store/log-0000000000000001` and remove later segments"#]]
        .assert_eq(&error.to_string());

    let offset = usize::try_from(*offset).unwrap();
    image.edit(path).truncate(offset);
    let disk = SimVfs::new(image);
    let store = open_sim(&disk).unwrap();
    assert_eq!(store.snapshot().range("", None).count(), 1);
    store.txn(vec![], vec![put("/core/pods/default/new", "1")]).await.unwrap();
    drop(store);
    assert_eq!(open_sim(&disk).unwrap().snapshot().range("", None).count(), 2);
}

#[tokio::test]
async fn a_format_of_another_release_is_refused_untouched() {
    let (image, _, _) = store(23, false).await;
    for path in image.names.keys() {
        let mut newer = image.clone();
        newer.edit(path)[8] = 2;
        let before = newer.files();
        let disk = SimVfs::new(newer);
        let error = open_sim(&disk).err().unwrap();
        assert!(matches!(&error, OpenError::Version { path: named, found: 2, .. } if named == path), "{error}");
        assert_eq!(disk.image().files(), before);
    }
}

#[tokio::test]
async fn secrets_are_not_on_disk_in_plain() {
    let (image, expected, _) = store(24, true).await;
    let contains = |needle: &[u8]| image.files().values().any(|data| data.windows(needle.len()).any(|w| w == needle));
    let secrets: Vec<_> = expected.iter().filter(|(key, _)| key.starts_with("/core/secrets/")).collect();
    assert!(secrets.iter().all(|(_, (_, body))| !contains(body)));
    assert!(!contains(b"hunter2"));
    assert!(contains(&expected["/core/pods/default/last"].1), "the test would find it");
}

#[tokio::test]
async fn a_wrong_key_is_named_and_a_rotated_one_opens() {
    let (image, expected, _) = store(25, true).await;
    let open_with = |image: Image, keys: &str| {
        let keys = Keyring::parse(keys).unwrap().into();
        open(std::sync::Arc::new(SimVfs::new(image)), SeededRng::new(3), Options { keys, ..options() })
    };
    let other = "ff".repeat(32);
    let error = open_with(image.clone(), &other).err().unwrap();
    assert!(matches!(error, OpenError::Key { .. }), "{error}");
    assert!(error.to_string().contains("put that key's line back"), "{error}");

    let rotated = open_with(image, &format!("{other}\n{}", crate::model::KEYS)).unwrap();
    assert_eq!(contents(&rotated.snapshot()), expected);
    rotated.txn(vec![], vec![put("/core/secrets/default/new", "1")]).await.unwrap();
    assert!(rotated.snapshot().get(&key("/core/secrets/default/new")).is_some());
}
