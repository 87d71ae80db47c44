//! How the unpacking child gives up what it does not need.
//!
//! Its root becomes the layer's directory; it keeps the capabilities to make files of any owner and kind, a list of system
//! calls, and a bounded address space. Nothing that it could do then reaches a file outside.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit, umask};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The binary itself, the largest zstd window (128 MiB) and the names of a million directories.
const ADDRESS_SPACE: u64 = 384 << 20;
const OPEN_FILES: u64 = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("could not confine the unpacking process: {step}: {source}")]
    Step { step: &'static str, source: io::Error },
    #[error("could not confine the unpacking process: seccomp: {0}")]
    Seccomp(String),
}

/// Confines this process, which must have one thread, to its working directory, and returns that.
pub(crate) fn enter() -> Result<OwnedFd, ConfineError> {
    let step = |step| move |error: rustix::io::Errno| ConfineError::Step { step, source: error.into() };
    let filter = filter()?;
    umask(Mode::empty());
    let limit = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::As, limit(ADDRESS_SPACE)).map_err(step("memory limit"))?;
    setrlimit(Resource::Core, limit(0)).map_err(step("core limit"))?;
    setrlimit(Resource::Nofile, limit(OPEN_FILES)).map_err(step("descriptor limit"))?;
    chroot(".").map_err(step("chroot"))?;
    chdir("/").map_err(step("chdir"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(step("the layer's directory"))?;
    set_no_new_privs(true).map_err(step("no_new_privs"))?;
    let keep = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(step("capabilities"))?;
    seccompiler::apply_filter(&filter).map_err(|error| ConfineError::Seccomp(error.to_string()))?;
    Ok(root)
}

/// Reading, writing, making and describing files, memory, and leaving. Anything else answers EPERM.
fn filter() -> Result<BpfProgram, ConfineError> {
    let allowed = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_unlinkat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_utimensat,
        libc::SYS_fsetxattr,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let wrong = |error: seccompiler::BackendError| ConfineError::Seccomp(error.to_string());
    let architecture = std::env::consts::ARCH.try_into().map_err(wrong)?;
    let rules = allowed.into_iter().map(|number| (number, Vec::new())).collect();
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, eperm, SeccompAction::Allow, architecture).map_err(wrong)?;
    filter.try_into().map_err(wrong)
}
