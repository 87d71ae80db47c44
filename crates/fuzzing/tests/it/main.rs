//! The corpora of the fuzz targets, replayed: what was found once stays found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzzing::TARGETS;

/// Far more than any of the small files needs, in a test build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("a readable entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_corpus_holds() {
    for target in TARGETS {
        let corpus = fuzz().join("corpus").join(target.name);
        let names = names_in(&corpus);
        assert!(!names.is_empty(), "{} has no seeds", target.name);
        for name in names {
            let bytes = fs::read(corpus.join(&name)).expect("a readable seed");
            // Shown when it panics.
            println!("{}/{name}", target.name);
            let begun = Instant::now();
            (target.run)(&bytes);
            assert!(begun.elapsed() < PATIENCE, "{}/{name} took {:?}", target.name, begun.elapsed());
        }
    }
}

#[test]
fn nothing_and_nonsense_hold() {
    for target in TARGETS {
        for bytes in [&[][..], &[0], &[0xff; 64], &[0; 600], b"{}", b"[", "\u{e4}\0\u{e4}\0\u{e4}".as_bytes()] {
            println!("{} of {bytes:?}", target.name);
            (target.run)(bytes);
        }
    }
}

#[test]
fn every_target_is_in_the_table_and_in_the_package() {
    let listed: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert!(listed.is_sorted(), "the table is sorted");
    let files = names_in(&fuzz().join("fuzz_targets"));
    assert_eq!(files.iter().filter_map(|name| name.strip_suffix(".rs")).collect::<Vec<_>>(), listed);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("a manifest");
    let named: Vec<&str> =
        manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).skip(1).collect();
    assert_eq!(named, listed);
    assert_eq!(names_in(&fuzz().join("corpus")), listed);
}
