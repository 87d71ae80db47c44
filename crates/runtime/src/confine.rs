//! Confined processes of this binary that are no containers: the edge, and short-lived children that handle hostile bytes.
//!
//! Main spawns `<binary> <args…>`; the child calls [`enter`] before anything else, while it has one thread, and has from then on
//! only what the plan gave it. No program is executed afterwards, so the filter need not allow `execve`. The steps are a container's:
//! namespaces, an empty root, identity, capabilities, no_new_privs, seccomp.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::{
    LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscallBuilder,
};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use tokio::io::Interest;

use crate::cgroup::Cgroups;
use crate::error::{Error, io_error};
use crate::plan::Resources;
use crate::pods::blocking;
use crate::seqpacket::{self, MAX_FDS, MAX_MESSAGE};
use crate::setup::{Role, RoleRoot};
use crate::{Runtime, capability, seccomp, setup};

/// What a confined process may do and have.
#[derive(Debug)]
pub struct ConfinedPlan {
    /// Arguments for the binary, e.g. `["edge"]`. Its environment is empty.
    pub args: Vec<String>,
    /// What it sees as `/`.
    pub root: Root,
    pub uid: u32,
    pub gid: u32,
    /// Capabilities that it keeps, by name (`CAP_CHOWN`); usually none.
    pub capabilities: Vec<String>,
    /// System calls that it may make, by name, besides those that every Rust program needs ([`BASE_SYSCALLS`]). Of the others those
    /// that an honest program never makes kill it ([`FATAL_SYSCALLS`]), the rest answer EPERM. `clone` makes threads only.
    pub syscalls: Vec<String>,
    /// False: an empty network namespace of its own.
    pub host_network: bool,
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// Names its cgroup, `roles/<name>` below the runtime's root: letters, digits and `-`.
    pub name: String,
    /// Given to the child in this order, see [`enter`]. At most 31.
    pub fds: Vec<OwnedFd>,
    /// Its standard output and error; `None` is `/dev/null`.
    pub stderr: Option<OwnedFd>,
}

/// The root of a confined process.
#[derive(Debug)]
pub enum Root {
    /// An empty read-only tmpfs.
    Empty,
    /// This directory, writable, nosuid, nodev and noexec. Nothing above it can be reached.
    Directory(OwnedFd),
}

/// What the allocator, threads, tokio, time and inherited descriptors need. Nothing here opens a path or makes a socket.
pub const BASE_SYSCALLS: &[&str] = &[
    "accept4",
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "dup",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "exit",
    "exit_group",
    "fcntl",
    "fstat",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpeername",
    "getpid",
    "getppid",
    "getrandom",
    "getrusage",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "ioctl",
    "lseek",
    "madvise",
    "membarrier",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "preadv",
    "prlimit64",
    "pwrite64",
    "pwritev",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "sched_getaffinity",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "setsockopt",
    "shutdown",
    "sigaltstack",
    "socketpair",
    "statx",
    "sysinfo",
    "tgkill",
    "timerfd_create",
    "timerfd_settime",
    "uname",
    "write",
    "writev",
];

/// What no confined process makes unless it has been taken over.
pub const FATAL_SYSCALLS: &[&str] = &[
    "bpf",
    "chroot",
    "delete_module",
    "execve",
    "execveat",
    "finit_module",
    "init_module",
    "io_uring_setup",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "setns",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// A running confined process. Dropping it does not end the process.
#[derive(Debug)]
pub struct Confined {
    pub pid: u32,
    /// Readable when it ends.
    pub pidfd: OwnedFd,
    child: Mutex<Child>,
    cgroups: Cgroups,
    group: PathBuf,
}

impl Confined {
    /// Waits until the process ends, and removes its cgroup: its exit code, 128 + signal when killed. Cancellation safe.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn wait(&self) -> io::Result<i32> {
        let watched = crate::sys::watch(self.pidfd.try_clone()?, Interest::READABLE)?;
        loop {
            let mut ready = watched.readable().await?;
            let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?;
            if let Some(status) = status {
                let (cgroups, group) = (self.cgroups.clone(), self.group.clone());
                // Another process of the same role may be in it.
                blocking(move || cgroups.remove_if_empty(&group)).await?;
                use std::os::unix::process::ExitStatusExt;
                return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            ready.clear_ready();
        }
    }

    /// Sends a signal; a dead process is no error.
    ///
    /// # Errors
    /// When `signal` is none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Runtime {
    /// Starts a confined process.
    ///
    /// # Errors
    /// When it cannot be spawned. What goes wrong inside [`enter`] is the child's to report, on its stderr.
    pub fn spawn_confined(&self, plan: ConfinedPlan) -> Result<Confined, Error> {
        let name = plan.name.clone();
        let what = || io_error(format!("start confined process {name}"));
        let refuse = |field: &str, problem: String| Err(Error::Plan { field: field.to_owned(), problem });
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return refuse("name", "must be letters, digits and `-`".to_owned());
        }
        if plan.fds.len() >= MAX_FDS {
            return refuse("fds", format!("must be at most {}", MAX_FDS - 1));
        }
        let mut capabilities = 0;
        for name in &plan.capabilities {
            match capability::bit(name) {
                Some(bit) => capabilities |= bit,
                None => return refuse("capabilities", format!("unknown capability {name:?}")),
            }
        }
        let group = Path::new("roles").join(&name);
        let cgroups = self.inner.cgroups.clone();
        cgroups.make(&group).map_err(what())?;
        let limits = Resources { memory_limit: plan.memory_limit, ..Resources::default() };
        cgroups.limit(&group, &limits).map_err(what())?;

        let (root, directory) = match plan.root {
            Root::Empty => (RoleRoot::Empty, None),
            Root::Directory(directory) => (RoleRoot::Directory, Some(directory)),
        };
        let role = Role {
            root,
            uid: plan.uid,
            gid: plan.gid,
            capabilities,
            host_network: plan.host_network,
            filter: filter(&plan.syscalls)?,
        };
        let message = serde_json::to_vec(&role).map_err(|error| what()(error.into()))?;
        let (ours, theirs) = seqpacket::pair().map_err(what())?;
        let (output, errors) = match plan.stderr {
            Some(stderr) => (Stdio::from(stderr.try_clone().map_err(what())?), Stdio::from(stderr)),
            None => (Stdio::null(), Stdio::null()),
        };
        let mut child = Command::new(self.inner.binary_path())
            .arg0("coracle")
            .args(&plan.args)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(what())?;
        let pid = child.id();
        let fds: Vec<BorrowedFd<'_>> = directory.iter().chain(&plan.fds).map(AsFd::as_fd).collect();
        // The child waits for its plan: its limit is in force before it does anything.
        let prepared = cgroups
            .put_process(&group, pid)
            .and_then(|()| seqpacket::send(ours.as_fd(), &message, &fds))
            .and_then(|()| {
                let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
                Ok(rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?)
            });
        match prepared {
            Ok(pidfd) => Ok(Confined { pid, pidfd, child: Mutex::new(child), cgroups, group }),
            Err(error) => {
                child.kill().and_then(|()| child.wait()).map_err(what())?;
                Err(what()(error))
            }
        }
    }
}

/// The filter of a confined process.
fn filter(allowed: &[String]) -> Result<Vec<u64>, Error> {
    /// `CLONE_THREAD`: anything else that clone makes is a process.
    const THREAD: u64 = 0x0001_0000;
    const ENOSYS: u32 = 38;
    let names: Vec<String> =
        BASE_SYSCALLS.iter().map(|name| (*name).to_owned()).chain(allowed.iter().cloned()).collect();
    let fatal: Vec<String> =
        FATAL_SYSCALLS.iter().map(|name| (*name).to_owned()).filter(|name| !names.contains(name)).collect();
    let thread = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(THREAD)
        .value_two(THREAD)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()
        .expect("every part is given");
    let rule = |names: Vec<String>, action| LinuxSyscallBuilder::default().names(names).action(action);
    let rules = [
        rule(names, LinuxSeccompAction::ScmpActAllow),
        rule(fatal, LinuxSeccompAction::ScmpActKillProcess),
        rule(vec!["clone".to_owned()], LinuxSeccompAction::ScmpActAllow).args(vec![thread]),
        // Its flags cannot be seen; C libraries fall back to clone.
        rule(vec!["clone3".to_owned()], LinuxSeccompAction::ScmpActErrno).errno_ret(ENOSYS),
    ];
    let rules: Vec<_> = rules.into_iter().map(|rule| rule.build().expect("every part is given")).collect();
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .syscalls(rules)
        .build()
        .expect("every part is given");
    seccomp::compile(&profile).map_err(|error| Error::Plan { field: "syscalls".to_owned(), problem: error.to_string() })
}

/// Confines this process by the plan that its parent passed, and returns the plan's `fds`.
///
/// Must be the first thing that the process does: it has one thread and has opened nothing.
///
/// # Errors
/// When it was not started by [`Runtime::spawn_confined`], or a step is refused. The caller must exit: the process may be half
/// confined.
pub fn enter() -> Result<Vec<OwnedFd>, Error> {
    let what = || io_error("confine this process".to_owned());
    let [socket] = crate::shim::take_passed().map_err(|reason| what()(io::Error::other(reason)))?;
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, fds) = seqpacket::receive(socket.as_fd(), &mut buffer).map_err(what())?;
    drop(socket);
    let role: Role = serde_json::from_slice(&buffer[..length]).map_err(|error| what()(error.into()))?;
    drop(buffer);
    let mut fds = fds.into_iter();
    let directory = match role.root {
        RoleRoot::Empty => None,
        RoleRoot::Directory => fds.next(),
    };
    setup::enter_role(&role, directory).map_err(|fault| what()(io::Error::other(fault.to_string())))?;
    Ok(fds.collect())
}

/// Confines this process, which must have one thread, where it stands: it keeps these capabilities (`CAP_CHOWN`) and may make
/// these system calls and no others, which answer EPERM. Its root and identity stay.
///
/// # Errors
/// When a name is unknown, or the kernel refuses. The caller must exit: the process may be half confined.
pub fn keep_only(capabilities: &[&str], syscalls: &[&str]) -> io::Result<()> {
    let names = syscalls.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let allow = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow).build();
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .syscalls([allow.expect("every part is given")])
        .build()
        .expect("every part is given");
    let filter = seccomp::compile(&profile).map_err(io::Error::other)?;
    let known =
        |name: &&str| capability::bit(name).ok_or_else(|| io::Error::other(format!("unknown capability {name:?}")));
    let bits = capabilities.iter().map(known).try_fold(0, |bits, bit| io::Result::Ok(bits | bit?))?;
    let keep = CapabilitySet::from_bits_retain(bits);
    set_no_new_privs(true)?;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() })?;
    crate::sys::install_seccomp(&filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::native;

    fn check(call: &str, arguments: &[u64], expected: &str) {
        let program = filter(&["openat".to_owned()]).unwrap();
        assert_eq!(native(&program, call, arguments), expected, "{call}");
    }

    #[test]
    fn only_what_is_named_passes() {
        check("read", &[], "allow");
        check("openat", &[], "allow");
        check("socket", &[], "errno 1");
        check("execve", &[], "kill");
    }

    #[test]
    fn clone_makes_threads_only() {
        check("clone", &[0x003d_0f00], "allow");
        check("clone", &[17], "errno 1");
        check("clone3", &[], "errno 38");
    }
}
