//! `floor`: what the machine itself can do, without either side. Nothing that has to do these things can be faster.
//!
//! The figures stand in the peer's column: the machine is the peer of both.

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use testkit::debian::crate_target;

use crate::Env;
use crate::figures::{Figures, Measure, Which};
use crate::stats::median;

const SYNCS: usize = 200;
const CHILDREN: usize = 100;
const NAMESPACED: usize = 20;
const ASKED: usize = 2_000;
const PINGS: usize = 5_000;
/// Bytes that go through memory, cipher and digest.
const MASS: usize = 256 << 20;
/// A TLS record.
const RECORD: usize = 16 << 10;

const APPEND: Measure = Measure::cost("floor_append_fdatasync", "µs");
const OVERWRITE: Measure = Measure::cost("floor_overwrite_fdatasync", "µs");
const EXEC: Measure = Measure::cost("floor_clone_exec_wait", "µs");
const NAMESPACES: Measure = Measure::cost("floor_namespaces_exec_wait", "µs");
const NETLINK: Measure = Measure::cost("floor_netlink_request", "µs");
const RTT: Measure = Measure::cost("floor_tcp_round_trip", "µs");
const MEMCPY: Measure = Measure::rate("floor_memcpy", "GB/s");
const AES: Measure = Measure::rate("floor_aes_128_gcm", "GB/s");
const SHA: Measure = Measure::rate("floor_sha256", "GB/s");

type Probe = fn() -> Result<f64>;

const PROBES: &[(Measure, Probe)] = &[
    (APPEND, append_fdatasync),
    (OVERWRITE, overwrite_fdatasync),
    (EXEC, clone_exec_wait),
    (NAMESPACES, namespaces_exec_wait),
    (NETLINK, netlink_request),
    (RTT, tcp_round_trip),
    (MEMCPY, memcpy),
    (AES, aes),
    (SHA, sha256),
];

pub fn run(env: &Env) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..env.rounds {
        for (measure, probe) in PROBES {
            figures.record(Which::Peer, *measure, probe().with_context(|| measure.name)?);
        }
    }
    Ok(figures)
}

/// The median of `count` runs, in microseconds.
fn each(count: usize, mut run: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let began = Instant::now();
        run(n)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    median(&times).context("there were runs")
}

/// Gigabytes per second when [`MASS`] bytes took so long.
fn gigabytes(took: Duration) -> f64 {
    MASS as f64 / 1e9 / took.as_secs_f64()
}

/// A file below `target/`, on the disk that both sides write to, gone when the value is.
struct Scratch {
    path: PathBuf,
    file: fs::File,
}

impl Scratch {
    fn new() -> Result<Self> {
        fs::create_dir_all(crate_target())?;
        let path = crate_target().join(format!("floor-{}", std::process::id()));
        let file = fs::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It lies below target/.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a log pays for a record of 1 KiB that makes its file longer.
fn append_fdatasync() -> Result<f64> {
    let scratch = Scratch::new()?;
    let record = [7; 1024];
    each(SYNCS, |n| {
        scratch.file.write_all_at(&record, (n * record.len()) as u64)?;
        Ok(scratch.file.sync_data()?)
    })
}

/// The same within a file that is long enough already.
fn overwrite_fdatasync() -> Result<f64> {
    let scratch = Scratch::new()?;
    let record = [7; 1024];
    scratch.file.write_all_at(&vec![0; SYNCS * record.len()], 0)?;
    scratch.file.sync_all()?;
    each(SYNCS, |n| {
        scratch.file.write_all_at(&record, (n * record.len()) as u64)?;
        Ok(scratch.file.sync_data()?)
    })
}

fn clone_exec_wait() -> Result<f64> {
    each(CHILDREN, |_| succeed(&mut Command::new("/bin/busybox"), &["true"]))
}

/// A process in namespaces of its own, made by unshare(1), which is an exec more.
fn namespaces_exec_wait() -> Result<f64> {
    let arguments = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "/bin/busybox", "true"];
    each(NAMESPACED, |_| succeed(&mut Command::new("unshare"), &arguments))
}

fn succeed(command: &mut Command, arguments: &[&str]) -> Result<()> {
    let status = command.args(arguments).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{:?}: {status}", command.get_program());
    Ok(())
}

/// Asks the kernel about `lo`; NETLINK_ROUTE is protocol 0. Source: rtnetlink(7).
fn netlink_request() -> Result<f64> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // struct nlmsghdr: RTM_GETLINK, NLM_F_REQUEST; struct ifinfomsg: index 1.
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend([18_u16, 1].map(u16::to_ne_bytes).concat());
    message.extend([1_u32, 0].map(u32::to_ne_bytes).concat());
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend([0; 8]);
    let mut answer = [0; 8192];
    each(ASKED, |_| {
        send(&socket, &message, SendFlags::empty())?;
        let (size, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        // RTM_NEWLINK; an error would be NLMSG_ERROR, 2.
        ensure!(size > 16 && answer[4] == 16, "the kernel answers with message {}", answer[4]);
        Ok(())
    })
}

fn tcp_round_trip() -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut ours = TcpStream::connect(listener.local_addr()?)?;
    let (mut theirs, _) = listener.accept()?;
    ours.set_nodelay(true)?;
    theirs.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || -> std::io::Result<()> {
            let mut byte = [0];
            while theirs.read(&mut byte)? == 1 {
                theirs.write_all(&byte)?;
            }
            Ok(())
        });
        let mut byte = [1];
        let took = each(PINGS, |_| {
            ours.write_all(&byte)?;
            Ok(ours.read_exact(&mut byte)?)
        });
        drop(ours);
        echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
        took
    })
}

fn memcpy() -> Result<f64> {
    let from = vec![1_u8; MASS];
    let mut to = from.clone();
    let began = Instant::now();
    to.copy_from_slice(black_box(&from));
    black_box(&to);
    Ok(gigabytes(began.elapsed()))
}

/// Records of TLS, sealed.
fn aes() -> Result<f64> {
    let key = UnboundKey::new(&AES_128_GCM, &[1; 16]).map_err(|_| anyhow::anyhow!("a key of 16 bytes is refused"))?;
    let key = LessSafeKey::new(key);
    let mut record = vec![0_u8; RECORD];
    let began = Instant::now();
    for _ in 0..MASS / RECORD {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut record);
        let tag = tag.map_err(|_| anyhow::anyhow!("a record could not be sealed"))?;
        black_box(tag.as_ref());
    }
    Ok(gigabytes(began.elapsed()))
}

fn sha256() -> Result<f64> {
    let bytes = vec![1_u8; MASS];
    let began = Instant::now();
    black_box(ring::digest::digest(&ring::digest::SHA256, black_box(&bytes)));
    Ok(gigabytes(began.elapsed()))
}
