//! The program that the tests give to the runtime: a shim, and what else the real binary is started as.
#![allow(clippy::unwrap_used, reason = "a program of the tests")]

use std::ffi::OsString;

use runtime::pods::Step;
use runtime::{Config, Runtime};

fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("shim") => runtime::shim::main(&args[1..]),
        Some("die-after") => die_after(&args[1..]),
        Some("confined") => confined(args[1].to_str().unwrap()),
        other => {
            eprintln!("unknown command {other:?}");
            std::process::exit(2);
        }
    }
}

/// A main that begins to make a pod and dies, as by `kill -9`, after one of the steps.
fn die_after(args: &[OsString]) {
    let [run_dir, cgroup_root, number, plan] = args else { panic!("die-after RUN_DIR CGROUP_ROOT STEP PLAN") };
    let number: usize = number.to_str().unwrap().parse().unwrap();
    static LAST: std::sync::OnceLock<Step> = std::sync::OnceLock::new();
    LAST.set(Step::ALL[number]).unwrap();
    let config = Config {
        run_dir: run_dir.into(),
        cgroup_root: cgroup_root.into(),
        binary: "/proc/self/exe".into(),
        after_step: Some(|step| {
            if LAST.get() == Some(&step) {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            }
        }),
    };
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let (runtime, _events) = Runtime::new(config).unwrap();
        runtime.create_pod(serde_json::from_str(plan.to_str().unwrap()).unwrap()).await.unwrap();
    });
}

/// What a confined process tries.
fn confined(what: &str) {
    let fds = match runtime::confine::enter() {
        Ok(fds) => fds,
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            std::process::exit(125);
        }
    };
    match what {
        "status" => {
            let other = std::thread::spawn(|| 1);
            let threads = 1 + other.join().unwrap();
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            let entries = std::fs::read_dir("/").unwrap().count();
            let nnp = rustix::thread::no_new_privs().unwrap();
            let caps = rustix::thread::capability_is_in_bounding_set(rustix::thread::CapabilitySet::CHOWN).unwrap();
            println!("uid {uid} gid {gid} threads {threads} entries {entries} nnp {nnp} caps {}", u8::from(caps));
        }
        "exec" => {
            let error = std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/sh"));
            println!("{error}");
        }
        "open" => println!("{:?}", std::fs::File::open("/etc/passwd").unwrap_err().raw_os_error()),
        "fds" => {
            for fd in fds {
                print!("{}", std::io::read_to_string(std::fs::File::from(fd)).unwrap());
            }
        }
        "unpack" => {
            std::fs::create_dir("/made").unwrap();
            let made = std::fs::File::open("/made").unwrap();
            std::os::unix::fs::fchown(&made, Some(5), None).unwrap();
            let owner = std::os::unix::fs::MetadataExt::uid(&made.metadata().unwrap());
            let link = std::fs::File::open("/link").unwrap_err().raw_os_error();
            println!("made /made, owner {owner}; link: {link:?}");
        }
        "eat" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&eaten);
            }
        }
        what => panic!("{what}"),
    }
}
