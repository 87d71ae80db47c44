//! Confined processes of the binary itself.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;

use runtime::confine::{ConfinedPlan, Root};

use crate::bed::{Bed, read_all};

fn plan(what: &str, output: OwnedFd) -> ConfinedPlan {
    ConfinedPlan {
        args: vec!["confined".to_owned(), what.to_owned()],
        root: Root::Empty,
        uid: 7777,
        gid: 7778,
        capabilities: Vec::new(),
        syscalls: Vec::new(),
        host_network: false,
        memory_limit: Some(64 << 20),
        name: "probe".to_owned(),
        fds: Vec::new(),
        stderr: Some(output),
    }
}

/// Runs `what` of `shim.rs` confined: its exit code and output.
async fn run(what: &str, change: impl FnOnce(&Bed, &mut ConfinedPlan)) -> (i32, String) {
    let bed = Bed::new();
    let (output, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut plan = plan(what, end);
    change(&bed, &mut plan);
    let confined = bed.runtime.spawn_confined(plan).unwrap();
    let text = read_all(output).await;
    let code = confined.wait().await.unwrap();
    bed.finish().await;
    (code, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_an_identity_and_nothing_else() {
    let (code, text) =
        run("status", |_, plan| plan.syscalls = ["openat", "getdents64", "statx"].map(str::to_owned).to_vec()).await;
    assert_eq!((code, text.as_str()), (0, "uid 7777 gid 7778 threads 2 entries 0 nnp true caps 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn executing_kills_it() {
    let (code, _) = run("exec", |_, _| {}).await;
    assert_eq!(code, 128 + 31);
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_is_refused() {
    assert_eq!(run("open", |_, _| {}).await, (0, "Some(1)\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_arrive_in_order() {
    let change = |bed: &Bed, plan: &mut ConfinedPlan| {
        for name in ["first", "second"] {
            let path = bed.directory.join(name);
            writeln!(File::create(&path).unwrap(), "{name}").unwrap();
            plan.fds.push(File::open(path).unwrap().into());
        }
    };
    assert_eq!(run("fds", change).await, (0, "first\nsecond\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_all_that_it_sees() {
    let change = |bed: &Bed, plan: &mut ConfinedPlan| {
        let directory = bed.directory.join("unpack");
        fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.join("link")).unwrap();
        plan.root = Root::Directory(File::open(&directory).unwrap().into());
        plan.capabilities = vec!["CAP_CHOWN".to_owned(), "CAP_DAC_OVERRIDE".to_owned()];
        plan.syscalls = ["openat", "fchown", "statx", "mkdir", "mkdirat"].map(str::to_owned).to_vec();
    };
    assert_eq!(run("unpack", change).await, (0, "made /made, owner 5; link: Some(2)\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn its_memory_is_limited() {
    let (code, _) = run("eat", |_, _| {}).await;
    assert_eq!(code, 137);
}

#[test]
fn nobody_enters_by_hand() {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_runtime-shim")).args(["confined", "status"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("could not confine this process"));
}
