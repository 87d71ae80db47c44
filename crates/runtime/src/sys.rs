//! The system calls that rustix does not offer safely: the only unsafe code of the crate.
//!
//! All of it runs in processes with one thread (shims and their children), but for [`fd_from_raw`] and [`load_device_program`].
#![allow(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// `struct clone_args` of `clone3(2)`, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks with `flags` (`CLONE_NEW*`), into a version 2 cgroup when one is given: the child's pid, or `None` in the child.
///
/// Must be called with one thread: the child goes on with a copy of this one's heap and locks.
pub(crate) fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack, clone3 is fork: the child has its own copy of all memory. The struct is as long as said.
    // With one thread no lock can be held by a thread that the child lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    Ok((pid != 0).then_some(pid as u32))
}

/// Ends the process without running destructors or flushing: the end of a forked child.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces the program; returns only the reason why that failed.
pub(crate) fn exec(path: &CString, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with null and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Leaves the namespaces in `flags`; never for `CLONE_FILES`.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> rustix::io::Result<()> {
    assert!(!flags.contains(rustix::thread::UnshareFlags::FILES), "the descriptor table stays shared with nobody");
    // SAFETY: unsound only for FILES, which is excluded above.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Changes a mount that `fd` (a descriptor of its root, or a detached tree) names; `recursive` includes the mounts below.
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the struct is as long as said; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// Marks every descriptor from 3 on close-on-exec.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing, so that no descriptor in use becomes invalid.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Installs a seccomp filter for this thread. Without no_new_privs that takes CAP_SYS_ADMIN.
pub(crate) fn install_seccomp(program: &[u64]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: a `sock_filter` is 8 bytes of plain data, and u64 is aligned better; the kernel copies and checks the program.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that is readable when children changed state.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; the descriptor is fresh and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Gives every signal its default action and unblocks all: an executed program inherits ignored and blocked ones.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL is no function of ours; sigset_t is plain data. Errors (SIGKILL, SIGSTOP, unused numbers) change nothing.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// When it is not open.
pub(crate) fn fd_from_raw(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads. Callers pass 0 or 1, which the standard library uses but never owns, and do so once.
    unsafe {
        check(libc::fcntl(fd, libc::F_GETFD).into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives back to the kernel what this process does not need while it waits: free heap, and the code that it ran to get here. What it
/// needs again comes back from the page cache by a fault.
pub(crate) fn shrink() {
    // SAFETY: malloc_trim touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines() {
        let mut fields = line.split(' ').filter(|field| !field.is_empty());
        let (Some(range), Some("r-xp"), Some(file)) = (fields.next(), fields.next(), fields.nth(3)) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        if let (Some(start), Some(end), true) = (address(start), address(end), file.starts_with('/')) {
            // SAFETY: the mapping is of a file, private, and was never writable, so that its pages are the file's: dropped ones are
            // read again with the same contents. The file cannot change while it is executed.
            unsafe {
                libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Loads a BPF program of type `CGROUP_DEVICE` and attaches it to a version 2 cgroup, in place of one that this process attached.
pub(crate) fn load_device_program(program: &[u64], cgroup: BorrowedFd<'_>) -> io::Result<()> {
    const PROG_LOAD: libc::c_int = 5;
    const PROG_ATTACH: libc::c_int = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;

    /// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        flags: u32,
    }
    /// The head of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        flags: 0,
    };
    // SAFETY: both structs are as long as said, and their pointers outlive the calls; the kernel verifies the program. The
    // descriptor that PROG_LOAD returns is fresh and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()))?;
        let loaded = OwnedFd::from_raw_fd(fd as RawFd);
        let attach = Attach {
            target: cgroup.as_raw_fd() as u32,
            program: loaded.as_raw_fd() as u32,
            kind: ATTACH_CGROUP_DEVICE,
            flags: 0,
        };
        check(libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>())).map(drop)
    }
}

/// Lets the kernel reap this process' children.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN is no function of ours.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
}

/// Closes every descriptor; for a process that will use none again.
pub(crate) fn close_all() {
    // SAFETY: the caller never returns to code that owns a descriptor.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
    }
}

/// Closes every descriptor from 3 on but those; for a child that keeps nothing else of its parent's.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if from < fd {
            // SAFETY: the caller's copies of its parent's descriptors are never used again: it becomes another program or ends.
            unsafe {
                libc::syscall(libc::SYS_close_range, from, if fd == u32::MAX { fd } else { fd - 1 }, 0);
            }
        }
        from = fd.saturating_add(1);
    }
}

/// Sleeps until a signal arrives.
pub(crate) fn wait_for_signal() {
    // SAFETY: pause has no arguments and touches no memory.
    unsafe {
        libc::pause();
    }
}

/// Registers a descriptor with tokio, which owns it from then on.
pub(crate) fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor until it is dropped, which AsyncFd does after it has deregistered it.
    Ok(unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }?)
}
