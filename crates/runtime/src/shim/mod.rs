//! The shim: one small process per pod, parent of its containers, which goes on when main dies.
//!
//! One thread, one poll loop. It holds the pod's namespaces, forks containers, writes their logs, knows their exits, and serves main
//! on a socket in the pod's directory. It must stay small (it is multiplied by the number of pods): what needs memory, such as
//! reading a configuration, happens in the short-lived child.

mod children;
pub(crate) mod log;
mod namespaces;
pub(crate) mod protocol;
mod server;
mod streams;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::plan::PodPlan;

/// The plan of a pod, in its directory.
pub(crate) const POD: &str = "pod.json";
/// Locked as long as the pod's shim lives; holds its pid.
pub(crate) const LOCK: &str = "lock";
/// Where the shim listens. Its existence says that the pod is complete.
pub(crate) const SOCKET: &str = "shim.sock";
/// The containers' bundles.
pub(crate) const CONTAINERS: &str = "containers";

/// Best effort; the kubelet gives -998 to what a node cannot do without (`pkg/kubelet/qos/policy.go`).
const OOM_SCORE: &str = "-998";

/// Entry point of `coracle shim DIRECTORY`: serves one pod until it is removed. Never returns; `args` are those after `shim`.
///
/// Descriptor 0 is a socket that main holds the other end of, the shim's first connection; descriptor 1 is the pod's lock.
pub fn main(args: &[OsString]) -> ! {
    let [directory] = args else {
        eprintln!("usage: coracle shim DIRECTORY (started by coracle server; not for use by hand)");
        std::process::exit(2);
    };
    match take_passed().and_then(|[first, lock]| serve(Path::new(directory), first, lock.into())) {
        Ok(()) => std::process::exit(0),
        Err(reason) => fail(&reason),
    }
}

/// Main looks for the reason in what the shim printed, once the connection has ended.
fn fail(reason: &str) -> ! {
    eprintln!("shim: {reason}");
    std::process::exit(1)
}

fn serve(directory: &Path, first: OwnedFd, lock: File) -> Result<(), String> {
    match start(directory, lock) {
        Ok((shim, listener)) => shim.run(listener, first).map_err(|error| format!("poll: {error}")),
        // While the connection is still open, so that the reason is there when main looks for it.
        Err(reason) => fail(&reason),
    }
}

/// Moves the descriptors that main passed as the first of the standard streams to where nothing takes them for those, and closes all
/// else. Call it first: nothing else may be open.
pub(crate) fn take_passed<const N: usize>() -> Result<[OwnedFd; N], String> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("open /dev/null: {error}"))?;
    let mut taken = Vec::new();
    for number in 0..N {
        let passed = i32::try_from(number).map_err(|error| error.to_string()).and_then(|number| {
            crate::sys::fd_from_raw(number).map_err(|error| format!("descriptor {number} was not passed: {error}"))
        })?;
        taken.push(rustix::io::fcntl_dupfd_cloexec(&passed, 3).map_err(|error| format!("dup: {error}"))?);
        // The number stays in use, now by the null device.
        std::mem::forget(passed);
        match number {
            0 => rustix::stdio::dup2_stdin(&null),
            _ => rustix::stdio::dup2_stdout(&null),
        }
        .map_err(|error| format!("dup2: {error}"))?;
    }
    // What main itself inherited and did not mark close-on-exec would stay open as long as this process lives.
    drop(null);
    crate::sys::close_all_but(&taken.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    taken.try_into().map_err(|_| "not as many descriptors as asked for".to_owned())
}

fn start(directory: &Path, lock: File) -> Result<(server::Server, OwnedFd), String> {
    let say = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    // Not by the spawn: with a static C library that would make it fork instead of posix_spawn.
    rustix::process::chdir("/").map_err(|error| say("change to /", &error))?;
    rustix::process::setsid().map_err(|error| say("start a session", &error))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| say("become a subreaper", &error))?;
    rustix::thread::set_name(c"coracle-shim").ok();
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).ok();
    let signals = crate::sys::child_signals().map_err(|error| say("watch children", &error))?;
    take_lock(&lock)?;
    let plan = fs::read(directory.join(POD)).map_err(|error| say("read pod.json", &error))?;
    let plan: PodPlan = serde_json::from_slice(&plan).map_err(|error| say("read pod.json", &error))?;
    let namespaces = namespaces::Namespaces::make(&plan)?;
    let listener = listen(&directory.join(SOCKET)).map_err(|error| say("listen", &error))?;
    Ok((server::Server::new(directory.to_owned(), plan, namespaces, signals, lock), listener))
}

/// Fails when a new main has begun to remove the pod. The lock is passed by main, not opened by its name: that may be another pod's
/// by now, of the same uid.
fn take_lock(mut lock: &File) -> Result<(), String> {
    flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| format!("lock the pod: {error}"))?;
    // A main that is removing the pod held the lock, unlinked it, and let go.
    let links = rustix::fs::fstat(lock).map_err(|error| format!("stat the lock: {error}"))?.st_nlink;
    if links == 0 {
        return Err("the pod is being removed".to_owned());
    }
    // For a later main that finds this shim alive but deaf.
    lock.write_all(std::process::id().to_string().as_bytes()).map_err(|error| format!("write the lock: {error}"))
}

/// A path for the socket that fits `sun_path`, whatever the length of the directory's.
pub(crate) fn socket_address(path: &Path, directory: &OwnedFd) -> rustix::io::Result<SocketAddrUnix> {
    match SocketAddrUnix::new(path) {
        Ok(address) => Ok(address),
        Err(_) => SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())),
    }
}

/// Opens a pod's directory, for [`socket_address`].
pub(crate) fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn listen(path: &Path) -> rustix::io::Result<OwnedFd> {
    let directory = open_directory(path.parent().unwrap_or(Path::new("/")))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &socket_address(path, &directory)?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// The directory of a container's bundle.
pub(crate) fn container_directory(pod: &Path, id: &str) -> PathBuf {
    pod.join(CONTAINERS).join(id)
}
