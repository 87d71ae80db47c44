//! The last steps: identity, limits, capabilities, seccomp, and the program.
//!
//! Order matters: without no_new_privs a filter can only be installed with CAP_SYS_ADMIN, so it comes before the capabilities go;
//! with it, it comes last. Source: runc `libcontainer/init_linux.go`, `finalizeNamespace`, and capabilities(7).

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::{Capability, PosixRlimitType, Process};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, makedev};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::fault::{During, Fault, words};
use crate::{capability, seqpacket, sys};

/// The program's standard streams.
pub(super) enum Streams {
    Terminal(OwnedFd),
    /// `None` is the null device.
    Pipes([Option<OwnedFd>; 3]),
}

/// Docker's, CRI-O's and containerd's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the program of `process`.
pub(super) fn execute(
    process: &Process,
    streams: Streams,
    null: OwnedFd,
    filter: &[u64],
    status: BorrowedFd<'_>,
) -> Result<Infallible, Fault> {
    let user = process.user();
    let program = Program::new(process)?;
    limit(process)?;
    connect(streams, null, user.uid())?;
    let entered = rustix::process::chdir(process.cwd());
    sys::close_on_exec_from_3().during(|| "close descriptors".to_owned())?;
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(0o022)));

    let wanted = Wanted::of(process);
    drop_bounding(wanted.bounding)?;
    rustix::thread::clear_ambient_capability_set().during(|| "clear the ambient capabilities".to_owned())?;
    become_user(user.uid(), user.gid(), user.additional_gids().as_deref().unwrap_or_default())?;
    // The user may be allowed where root without DAC_OVERRIDE is not, e.g. in a home directory on NFS.
    entered
        .or_else(|_| rustix::process::chdir(process.cwd()))
        .during(|| format!("chdir to cwd ({:?}) set in config.json failed", process.cwd().display().to_string()))?;
    demand_cwd_inside()?;
    // Cleared by a change of user. A container does not outlive its shim: nobody would know its end.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .during(|| "bind the container to its shim".to_owned())?;
    let ready = || seqpacket::send(status, b"X", &[]).during(|| "report to the shim".to_owned());
    let seccomp = || match filter {
        [] => Ok(()),
        filter => sys::install_seccomp(filter).during(|| "install the seccomp filter".to_owned()),
    };
    if process.no_new_privileges().unwrap_or(false) {
        rustix::thread::set_no_new_privs(true).during(|| "set no_new_privs".to_owned())?;
        set_capabilities(&wanted)?;
        ready()?;
        seccomp()?;
    } else {
        ready()?;
        seccomp()?;
        set_capabilities(&wanted)?;
    }
    Err(program.execute())
}

fn limit(process: &Process) -> Result<(), Fault> {
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::Cpu,
            PosixRlimitType::RlimitFsize => Resource::Fsize,
            PosixRlimitType::RlimitData => Resource::Data,
            PosixRlimitType::RlimitStack => Resource::Stack,
            PosixRlimitType::RlimitCore => Resource::Core,
            PosixRlimitType::RlimitRss => Resource::Rss,
            PosixRlimitType::RlimitNproc => Resource::Nproc,
            PosixRlimitType::RlimitNofile => Resource::Nofile,
            PosixRlimitType::RlimitMemlock => Resource::Memlock,
            PosixRlimitType::RlimitAs => Resource::As,
            PosixRlimitType::RlimitLocks => Resource::Locks,
            PosixRlimitType::RlimitSigpending => Resource::Sigpending,
            PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
            PosixRlimitType::RlimitNice => Resource::Nice,
            PosixRlimitType::RlimitRtprio => Resource::Rtprio,
            PosixRlimitType::RlimitRttime => Resource::Rttime,
        };
        let value = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
        setrlimit(resource, new).during(|| format!("set {:?}", limit.typ()))?;
    }
    Ok(())
}

/// Makes the streams descriptors 0 to 2. They belong to the user, so that `/dev/stdout` can be opened.
fn connect(streams: Streams, null: OwnedFd, uid: u32) -> Result<(), Fault> {
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
    let what = || "connect the standard streams".to_owned();
    let [input, output, error] = match &streams {
        Streams::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(terminal).during(|| "take the terminal".to_owned())?;
            [terminal, terminal, terminal]
        }
        Streams::Pipes(pipes) => pipes.each_ref().map(|pipe| pipe.as_ref().unwrap_or(&null)),
    };
    for stream in [input, output, error] {
        let stat = fstat(stream).during(what)?;
        let is_null =
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
        if !is_null && stat.st_uid != uid {
            // Best effort: a descriptor of another kind (a file that main passed) may refuse.
            fchown(stream, Some(Uid::from_raw(uid)), None).ok();
        }
    }
    dup2_stdin(input).and_then(|()| dup2_stdout(output)).and_then(|()| dup2_stderr(error)).during(what)
}

/// The capability sets that the program gets. Inheritable and ambient stay empty (CVE-2022-29162).
struct Wanted {
    bounding: CapabilitySet,
    permitted: CapabilitySet,
    effective: CapabilitySet,
}

impl Wanted {
    fn of(process: &Process) -> Wanted {
        let set = |names: Option<&HashSet<Capability>>| {
            let names: Vec<String> = names.into_iter().flatten().map(|name| format!("CAP_{name}")).collect();
            capability::set(names.iter().map(String::as_str))
        };
        let sets = process.capabilities().as_ref();
        Wanted {
            bounding: set(sets.and_then(|sets| sets.bounding().as_ref())),
            permitted: set(sets.and_then(|sets| sets.permitted().as_ref())),
            effective: set(sets.and_then(|sets| sets.effective().as_ref())),
        }
    }
}

pub(super) fn drop_bounding(keep: CapabilitySet) -> Result<(), Fault> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).during(|| "drop bounding capabilities".to_owned()),
        }
    }
    Ok(())
}

/// Changes groups and user, and keeps the capabilities for what is still to be done.
pub(super) fn become_user(uid: u32, gid: u32, additional: &[u32]) -> Result<(), Fault> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let groups: Vec<Gid> = additional.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_keep_capabilities(true).during(|| "keep capabilities".to_owned())?;
    rustix::thread::set_thread_groups(&groups).during(|| "set additional groups".to_owned())?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(|| "set the group".to_owned())?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(|| "set the user".to_owned())?;
    rustix::thread::set_keep_capabilities(false).during(|| "keep no capabilities".to_owned())?;
    let mut sets = rustix::thread::capabilities(None).during(|| "read capabilities".to_owned())?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).during(|| "raise capabilities".to_owned())
}

fn set_capabilities(wanted: &Wanted) -> Result<(), Fault> {
    keep_capabilities(wanted.permitted, wanted.effective)
}

pub(super) fn keep_capabilities(permitted: CapabilitySet, effective: CapabilitySet) -> Result<(), Fault> {
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).during(|| "set capabilities".to_owned())
}

/// A working directory outside of the root would be a way out of it (CVE-2024-21626).
fn demand_cwd_inside() -> Result<(), Fault> {
    let directory = rustix::process::getcwd(Vec::new()).during(|| "read the working directory".to_owned())?;
    if directory.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Fault("current working directory is outside of container mount namespace root".to_owned()))
    }
}

/// A program to be executed, with everything allocated beforehand.
struct Program {
    name: String,
    /// Where it may be, in the order of `PATH`; just the name when that has a slash.
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn new(process: &Process) -> Result<Program, Fault> {
        let string = |text: &str| CString::new(text).during(|| format!("{text:?}"));
        let args = process.args().as_deref().unwrap_or_default();
        let Some(name) = args.first().filter(|name| !name.is_empty()).cloned() else {
            return Err(Fault("args must not be empty".to_owned()));
        };
        let mut env = process.env().clone().unwrap_or_default();
        let value = |env: &[String], name: &str| {
            env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(ToOwned::to_owned))
        };
        if value(&env, "HOME").is_none_or(|home| home.is_empty()) {
            env.retain(|entry| !entry.starts_with("HOME="));
            env.push(format!("HOME={}", home_of(process.user().uid())));
        }
        let candidates = if name.contains('/') {
            vec![string(&name)?]
        } else {
            let path = value(&env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
            // Go refuses to run what it finds by a relative entry of PATH.
            let directories = path.split(':').filter(|directory| directory.starts_with('/'));
            directories.map(|directory| string(&format!("{directory}/{name}"))).collect::<Result<_, _>>()?
        };
        Ok(Program {
            name,
            candidates,
            args: args.iter().map(|arg| string(arg)).collect::<Result<_, _>>()?,
            env: env.iter().map(|entry| string(entry)).collect::<Result<_, _>>()?,
        })
    }

    /// Returns only the reason for which it could not be executed, in the words of Go's `exec.LookPath` and `syscall.Exec`.
    fn execute(&self) -> Fault {
        let name = &self.name;
        let slash = name.contains('/');
        for path in &self.candidates {
            let error = sys::exec(path, &self.args, &self.env);
            let shown = path.to_string_lossy();
            let reason = words(&error.to_string());
            let stat = rustix::fs::stat(path.as_c_str());
            match error {
                Errno::NOENT | Errno::NOTDIR if stat.is_err() && slash => {
                    return Fault(format!("exec: {name:?}: stat {name}: {reason}"));
                }
                Errno::NOENT | Errno::NOTDIR if stat.is_err() => {}
                Errno::ACCESS if slash => {
                    let is_directory =
                        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                    let reason = if is_directory { "is a directory" } else { "permission denied" };
                    return Fault(format!("exec: {name:?}: {reason}"));
                }
                Errno::ACCESS => {}
                _ => return Fault(format!("exec {shown}: {reason}")),
            }
        }
        Fault(format!("exec: {name:?}: executable file not found in $PATH"))
    }
}

/// The home directory that the container's `/etc/passwd` names, else `/`. Source: runc, `init_linux.go`, `setupUser`.
fn home_of(uid: u32) -> String {
    let uid = uid.to_string();
    let table = read_passwd().unwrap_or_default();
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && fields[2] == uid && !fields[5].is_empty())
        .map_or_else(|| "/".to_owned(), |fields| fields[5].to_owned())
}

/// The file is the image's: it may be a FIFO, a device, or endless.
fn read_passwd() -> Option<String> {
    const LIMIT: u64 = 1 << 20;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    if FileType::from_raw_mode(fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    fs::File::from(file).take(LIMIT).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
