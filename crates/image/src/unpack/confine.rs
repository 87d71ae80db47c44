//! How the unpacking child gives up what it does not need.
//!
//! Its root becomes the layer's directory; it keeps the capabilities to make files of any owner and kind, a list of system
//! calls, and a bounded address space. Nothing that it could do then reaches a file outside.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit, umask};

/// The binary itself, the largest zstd window (128 MiB) and the names of a million directories.
const ADDRESS_SPACE: u64 = 384 << 20;
const OPEN_FILES: u64 = 64;

/// To make files of any owner, mode and kind.
const CAPABILITIES: &[&str] =
    &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP"];
/// Reading, writing, making and describing files, memory, and leaving.
const SYSCALLS: &[&str] = &[
    "read",
    "readv",
    "write",
    "writev",
    "close",
    "lseek",
    "fstat",
    "newfstatat",
    "statx",
    "openat",
    "openat2",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "fchown",
    "fchownat",
    "fchmod",
    "fchmodat",
    "utimensat",
    "fsetxattr",
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "futex",
    "getrandom",
    "clock_gettime",
    "getpid",
    "gettid",
    "tgkill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "exit",
    "exit_group",
];

#[derive(Debug, thiserror::Error)]
#[error("could not confine the unpacking process: {step}: {source}")]
pub(crate) struct ConfineError {
    step: &'static str,
    source: io::Error,
}

/// Confines this process, which must have one thread, to its working directory, and returns that.
pub(crate) fn enter() -> Result<OwnedFd, ConfineError> {
    let step = |step| move |error: rustix::io::Errno| ConfineError { step, source: error.into() };
    umask(Mode::empty());
    let limit = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::As, limit(ADDRESS_SPACE)).map_err(step("memory limit"))?;
    setrlimit(Resource::Core, limit(0)).map_err(step("core limit"))?;
    setrlimit(Resource::Nofile, limit(OPEN_FILES)).map_err(step("descriptor limit"))?;
    chroot(".").map_err(step("chroot"))?;
    chdir("/").map_err(step("chdir"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(step("the layer's directory"))?;
    let rights = |source| ConfineError { step: "capabilities and system calls", source };
    runtime::confine::keep_only(CAPABILITIES, SYSCALLS).map_err(rights)?;
    Ok(root)
}
