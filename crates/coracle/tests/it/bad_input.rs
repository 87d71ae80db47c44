//! `docs/bad-input.md` is true: each row's manifest, flags or configuration gets the answer that the table gives.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::host::Host;

use crate::cluster::{CORACLE, shared, with_each_kubectl};

/// One row: what is given, and each line of the answer.
struct Row {
    given: String,
    answer: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows below a heading: the first column's link or code, and the lines of the last one.
fn table(heading: &str) -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/bad-input.md")).unwrap();
    let (_, section) = text.split_once(&format!("## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter(|line| line.starts_with("| [") || line.starts_with("| `")).map(row).collect()
}

fn row(line: &str) -> Row {
    let bare = line.trim_start_matches("| ").trim_end_matches(" |");
    let (first, rest) = bare.split_once(" | ").expect("a row has three cells");
    let (_, last) = rest.split_once(" | ").expect("a row has three cells");
    // A link's target, or the text between backticks.
    let given = match first.split_once("](") {
        Some((_, target)) => target.trim_end_matches(')').to_owned(),
        None => first.trim_matches('`').to_owned(),
    };
    let code = |line: &str| line.trim_matches('`').trim().replace("\\|", "|");
    Row { given, answer: last.split("<br>").map(code).collect() }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn each_manifest_gets_its_answer() {
    let rows = table("Manifests");
    assert!(rows.len() >= 20, "only {} rows are left", rows.len());
    with_each_kubectl("bad-input", |user| {
        for Row { given, answer } in &rows {
            let manifest = fs::read_to_string(root().join("docs").join(given)).unwrap();
            let printed = user.kubectl().run(&["apply", "-f", "-"], &manifest);
            assert_ne!(printed.code, Some(0), "{given}: {printed}");
            assert_eq!(lines(&printed.stderr), *answer, "{given}: {printed}");
        }
    });
}

#[test]
fn no_manifest_is_left_out() {
    let mut named: Vec<String> = table("Manifests").into_iter().map(|row| row.given).collect();
    named.sort();
    let directory = "../crates/coracle/tests/it/bad_input";
    let mut there: Vec<String> = fs::read_dir(root().join("docs").join(directory))
        .unwrap()
        .map(|entry| format!("{directory}/{}", entry.unwrap().file_name().display()))
        .collect();
    there.sort();
    assert_eq!(named, there);
}

/// Runs the binary on the shared cluster's host, with options that never let a second server start there.
fn refused(host: &Host, given: &str) -> Vec<String> {
    let words: Vec<&str> = given.split_whitespace().skip(1).collect();
    let printed = host.command(CORACLE).args(words).output().unwrap();
    assert!(!printed.status.success(), "coracle {given} succeeded");
    let stderr = String::from_utf8(printed.stderr).unwrap();
    // Process numbers are the only thing that differs from run to run.
    let pid = host.run(&["cat", "/run/coracle/main.pid"]).unwrap();
    lines(&stderr.replace(pid.trim(), "17207"))
}

#[test]
fn each_flag_gets_its_answer() {
    let host = shared().host();
    for Row { given, answer } in table("Flags") {
        assert_eq!(refused(host, &given), answer, "{given}");
    }
}

#[test]
fn each_configuration_gets_its_answer() {
    let host = shared().host();
    for Row { given, answer } in table("Configuration files") {
        let file = host.dir.join("etc/coracle/try.yaml");
        fs::write(&file, given.replace("\\n", "\n")).unwrap();
        assert_eq!(refused(host, "coracle server --config /etc/coracle/try.yaml"), answer, "{given}");
        fs::remove_file(&file).unwrap();
    }
}
