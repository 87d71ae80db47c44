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
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::plan::PodPlan;
use crate::seqpacket;

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
/// Descriptor 0 is a socket that main holds the other end of: the shim's first connection.
pub fn main(args: &[OsString]) -> ! {
    let [directory] = args else {
        eprintln!("usage: coracle shim DIRECTORY (started by coracle server; not for use by hand)");
        std::process::exit(2);
    };
    let code = match serve(Path::new(directory)) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("shim: {reason}");
            1
        }
    };
    std::process::exit(code)
}

fn serve(directory: &Path) -> Result<(), String> {
    let first = take_stdin()?;
    let outcome = start(directory);
    match outcome {
        Ok((shim, listener)) => shim.run(listener, first).map_err(|error| format!("poll: {error}")),
        Err(reason) => {
            let message = protocol::Message::Reply { seq: 0, result: Err(protocol::Failure::Other(reason.clone())) };
            let text = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
            seqpacket::send(first.as_fd(), &text, &[]).map_err(|error| format!("{reason} (not reported: {error})"))?;
            Err(reason)
        }
    }
}

/// Moves the socket that main passed as descriptor 0, where programs expect their standard input, and closes everything beyond
/// the standard streams. Call it first: nothing else may be open.
pub(crate) fn take_stdin() -> Result<OwnedFd, String> {
    let inherited = crate::sys::fd_from_raw(0).map_err(|error| format!("no connection to main: {error}"))?;
    let first = rustix::io::fcntl_dupfd_cloexec(&inherited, 3).map_err(|error| format!("dup: {error}"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("open /dev/null: {error}"))?;
    // What main itself inherited and did not mark close-on-exec would stay open as long as this process lives.
    crate::sys::close_all_but(&[first.as_raw_fd(), null.as_raw_fd()]);
    // Descriptor 0 stays open, now on the null device.
    std::mem::forget(inherited);
    rustix::stdio::dup2_stdin(&null).map_err(|error| format!("dup2: {error}"))?;
    Ok(first)
}

fn start(directory: &Path) -> Result<(server::Server, OwnedFd), String> {
    let say = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    // Not by the spawn: with a static C library that would make it fork instead of posix_spawn.
    rustix::process::chdir("/").map_err(|error| say("change to /", &error))?;
    rustix::process::setsid().map_err(|error| say("start a session", &error))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| say("become a subreaper", &error))?;
    rustix::thread::set_name(c"coracle-shim").ok();
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).ok();
    let signals = crate::sys::child_signals().map_err(|error| say("watch children", &error))?;
    let lock = lock(directory)?;
    let plan = fs::read(directory.join(POD)).map_err(|error| say("read pod.json", &error))?;
    let plan: PodPlan = serde_json::from_slice(&plan).map_err(|error| say("read pod.json", &error))?;
    let namespaces = namespaces::Namespaces::make(&plan)?;
    let listener = listen(&directory.join(SOCKET)).map_err(|error| say("listen", &error))?;
    crate::sys::trim_heap();
    Ok((server::Server::new(directory.to_owned(), plan, namespaces, signals, lock), listener))
}

/// Fails when another shim lives, or when a new main has begun to remove the pod.
fn lock(directory: &Path) -> Result<File, String> {
    let file =
        File::options().write(true).open(directory.join(LOCK)).map_err(|error| format!("open the lock: {error}"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| format!("lock the pod: {error}"))?;
    // A main that is removing the pod held the lock, unlinked it, and let go.
    let links = rustix::fs::fstat(&file).map_err(|error| format!("stat the lock: {error}"))?.st_nlink;
    if links == 0 {
        return Err("the pod is being removed".to_owned());
    }
    // For a later main that finds this shim alive but deaf.
    (&file).write_all(std::process::id().to_string().as_bytes()).map_err(|error| format!("write the lock: {error}"))?;
    Ok(file)
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
