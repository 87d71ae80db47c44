//! Exec and attach: pipes, terminals, clients that do not read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use runtime::error::Error;
use runtime::plan::{AttachPlan, ExecPlan, Stdin, Streams};

use crate::bed::{Bed, PATIENCE, read_all};

/// A pod `p` with a container that sleeps.
async fn sleeper(bed: &Bed) -> String {
    bed.pod("p").await;
    let plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    id
}

fn exec_plan(script: &str, stdin: bool, tty: bool) -> ExecPlan {
    ExecPlan { args: ["sh", "-c", script].map(str::to_owned).to_vec(), stdin, tty }
}

/// Reads a terminal until `needle` appears; a terminal has no end but an error.
async fn read_until(fd: &OwnedFd, needle: &str) -> String {
    let (mut file, needle) = (File::from(fd.try_clone().unwrap()), needle.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let (mut text, mut buffer) = (String::new(), [0; 1024]);
        while !text.contains(&needle) {
            match file.read(&mut buffer) {
                Ok(length) if length > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
                _ => break,
            }
        }
        text
    });
    tokio::time::timeout(PATIENCE, reading).await.expect("a stream said nothing").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_output_and_an_exit_code() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    assert_eq!(bed.exec("p", &id, "echo out; echo err >&2; exit 4").await, (4, "out\nerr\n".to_owned()));
    assert_eq!(bed.exec("p", &id, "kill -9 $$").await.0, 137);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_sees_the_container() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let (code, output) = bed.exec("p", &id, "hostname; cat /proc/1/comm; echo $PATH; readlink /proc/self/root").await;
    assert_eq!((code, output.as_str()), (0, "host-of-the-pod\nsleep\n/bin:/usr/bin\n/\n"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_reads_its_input_to_the_end() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let exec = bed.runtime.exec("p", &id, exec_plan("tr a-z A-Z", true, false)).await.unwrap();
    let Streams::Pipes { stdin: Some(stdin), stdout: Some(stdout), .. } = exec.streams else { panic!("no pipes") };
    File::from(stdin).write_all(b"quiet").unwrap();
    assert_eq!(read_all(stdout).await, "QUIET");
    assert_eq!(exec.exit.await.unwrap(), 0);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_a_terminal_of_the_right_size() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let exec = bed.runtime.exec("p", &id, exec_plan("read x; tty; stty size; exit 5", true, true)).await.unwrap();
    let Streams::Terminal { input, output } = exec.streams else { panic!("no terminal") };
    runtime::resize(&input, 100, 30).unwrap();
    File::from(input.try_clone().unwrap()).write_all(b"\n").unwrap();
    let text = read_until(&output, "30 100").await;
    assert!(text.contains("/dev/pts/0") && text.contains("30 100"), "{text:?}");
    assert_eq!(exec.exit.await.unwrap(), 5);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_cannot_start_says_why() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let plan = ExecPlan { args: vec!["nothing".to_owned()], stdin: false, tty: false };
    let error = bed.runtime.exec("p", &id, plan).await.unwrap_err();
    assert_eq!(error.to_string(), r#"exec: "nothing": executable file not found in $PATH"#);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_needs_a_running_container() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("true");
    let id = plan.id.clone();
    bed.runtime.create_container("p", plan).await.unwrap();
    let exec = || bed.runtime.exec("p", &id, exec_plan("true", false, false));
    assert!(matches!(exec().await, Err(Error::NotRunning(_))));
    bed.runtime.start_container("p", &id).await.unwrap();
    bed.exit().await;
    assert!(matches!(bed.runtime.exec("p", &id, exec_plan("true", false, false)).await, Err(Error::NotRunning(_))));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_may_be_long() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let long = "x".repeat(120_000);
    let args = ["sh", "-c", "echo ${#0} ${#1} ${#2}", &long, &long, &long].map(str::to_owned).to_vec();
    let exec = bed.runtime.exec("p", &id, ExecPlan { args, stdin: false, tty: false }).await.unwrap();
    let Streams::Pipes { stdout: Some(stdout), .. } = exec.streams else { panic!("no pipes") };
    assert_eq!(read_all(stdout).await, "120000 120000 120000\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_brings_input_and_output_and_the_log_has_it_too() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("echo before; while read x; do echo got $x; done; echo end >&2");
    plan.stdin = Stdin::Once;
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "before").await;
    let attach = AttachPlan { stdin: true, stdout: true, stderr: true };
    let attached = bed.runtime.attach("p", &id, attach).await.unwrap();
    let Streams::Pipes { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) } = attached.streams else {
        panic!("no pipes");
    };
    File::from(stdin).write_all(b"one\ntwo\n").unwrap();
    assert_eq!((read_all(stdout).await, read_all(stderr).await), ("got one\ngot two\n".to_owned(), "end\n".to_owned()));
    bed.exit().await;
    assert_eq!(bed.log("p"), "before\ngot one\ngot two\nend\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_stays_open_between_clients() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("while read x; do echo got $x; done");
    plan.stdin = Stdin::Open;
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    for word in ["one", "two"] {
        let attach = AttachPlan { stdin: true, stdout: false, stderr: false };
        let attached = bed.runtime.attach("p", &id, attach).await.unwrap();
        let Streams::Pipes { stdin: Some(stdin), .. } = attached.streams else { panic!("no stdin") };
        writeln!(File::from(stdin), "{word}").unwrap();
        bed.wait_for_log("p", &format!("got {word}")).await;
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_have_a_terminal() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("tty; test -c /dev/console && echo console; read x; echo got $x");
    plan.spec.process_mut().as_mut().unwrap().set_terminal(Some(true));
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    let attach = AttachPlan { stdin: true, stdout: true, stderr: false };
    let attached = bed.runtime.attach("p", &id, attach).await.unwrap();
    let Streams::Terminal { input, output } = attached.streams else { panic!("no terminal") };
    bed.wait_for_log("p", "console").await;
    File::from(input).write_all(b"it\n").unwrap();
    assert!(read_until(&output, "got it").await.contains("got it"));
    assert_eq!(bed.exit().await.exit_code, 0);
    assert!(bed.log("p").contains("/dev/pts/0"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off() {
    let mut bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("read x; head -c 3000000 /dev/zero | tr '\\0' y; exit 6");
    plan.stdin = Stdin::Open;
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    let attach = AttachPlan { stdin: true, stdout: true, stderr: false };
    let attached = bed.runtime.attach("p", &id, attach).await.unwrap();
    let Streams::Pipes { stdin: Some(stdin), stdout: Some(stdout), .. } = attached.streams else { panic!("no pipes") };
    File::from(stdin).write_all(b"go\n").unwrap();
    assert_eq!(bed.exit().await.exit_code, 6, "the container did not wait for its client");
    let read = read_all(stdout).await;
    assert!(!read.is_empty() && read.len() < 3_000_000, "{}", read.len());
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_names_a_stream_that_is_not_there() {
    let bed = Bed::new();
    let id = sleeper(&bed).await;
    let attach = AttachPlan { stdin: true, stdout: true, stderr: false };
    let error = bed.runtime.attach("p", &id, attach).await.unwrap_err();
    assert_eq!(error.to_string(), "attach: the container has no open stdin");
    bed.finish().await;
}
