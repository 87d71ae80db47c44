//! Logs: CRI's format, partial lines, rotation.

use std::fs;
use std::path::PathBuf;

use runtime::plan::LogLimits;

use crate::bed::{Bed, text_of, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn lines_carry_time_stream_and_tag() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("echo out; echo err >&2; printf part");
    bed.run_in("p", plan).await;
    let text = fs::read_to_string(bed.directory.join("logs/p/main/0.log")).unwrap();
    let mut tails: Vec<&str> = Vec::new();
    for line in text.lines() {
        let (time, tail) = line.split_once(' ').unwrap();
        assert!(time.len() == "2026-01-01T00:00:00.000000000Z".len() && time.ends_with('Z'), "{time}");
        tails.push(tail);
    }
    tails.sort_unstable();
    assert_eq!(tails, ["stderr F err", "stdout F out", "stdout P part"]);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_come_in_parts() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("head -c 40000 /dev/zero | tr '\\0' x; echo");
    bed.run_in("p", plan).await;
    let text = fs::read_to_string(bed.directory.join("logs/p/main/0.log")).unwrap();
    assert!(text.lines().count() >= 3);
    assert_eq!(text_of(&text), "x".repeat(40_000) + "\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_line_is_written_at_once() {
    let bed = Bed::new();
    bed.pod("p").await;
    bed.start("p", bed.plan("printf prompt; sleep 600")).await.unwrap();
    bed.wait_for_log("p", "prompt").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_rotate_by_themselves() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done");
    plan.log_limits = LogLimits { max_size: 10_000, max_files: 3 };
    bed.run_in("p", plan).await;
    let mut files: Vec<PathBuf> =
        fs::read_dir(bed.directory.join("logs/p/main")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    // 0.log sorts first and is the newest.
    files.rotate_left(1);
    let text: String = files.iter().map(|file| text_of(&fs::read_to_string(file).unwrap())).collect();
    assert!(text.ends_with("line 1999\n"));
    let numbers: Vec<u32> = text.lines().map(|line| line["line ".len()..].parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no line is lost between files");
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 10_000));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_log_is_reopened() {
    let bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("while :; do echo tick; sleep 0.01; done");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "tick").await;
    let log = bed.directory.join("logs/p/main/0.log");
    fs::rename(&log, log.with_extension("old")).unwrap();
    bed.runtime.reopen_log("p", &id).await.unwrap();
    wait_until("a new log", || log.exists() && bed.log("p").contains("tick")).await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_a_log_is_not_followed() {
    let bed = Bed::new();
    bed.pod("p").await;
    let directory = bed.directory.join("logs/p/main");
    fs::create_dir_all(&directory).unwrap();
    std::os::unix::fs::symlink(bed.directory.join("stolen"), directory.join("0.log")).unwrap();
    let error = bed.start("p", bed.plan("echo secret")).await.unwrap_err();
    assert!(error.to_string().starts_with("open the log main/0.log: "), "{error}");
    assert!(!bed.directory.join("stolen").exists());
    bed.finish().await;
}
