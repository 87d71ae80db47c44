//! The pod's namespaces: held by the shim itself, so that no pause process is needed but for a shared process namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::plan::{Ipc, Network, PidMode, PodPlan};
use crate::sys;

pub(super) struct Namespaces {
    /// `None` is the host's.
    pub network: Option<OwnedFd>,
    /// Where containers begin; see `setup::base`.
    pub mounts: OwnedFd,
    /// The shim's own process namespace, which it returns to after each fork.
    own_pids: OwnedFd,
    /// `shareProcessNamespace`.
    pod_pids: Option<OwnedFd>,
}

/// Which process namespace a child goes into.
pub(super) enum Pids<'a> {
    /// As the pod's plan says for a container.
    Container,
    /// That of a running process.
    Of(&'a OwnedFd),
}

impl Namespaces {
    /// Makes the pod's namespaces and enters those that the shim holds itself.
    pub(super) fn make(plan: &PodPlan) -> Result<Namespaces, String> {
        let say = |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
        let mut flags = UnshareFlags::empty();
        if plan.network == Network::Pod {
            flags |= UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
        }
        if plan.ipc == Ipc::Pod {
            flags |= UnshareFlags::NEWIPC;
        }
        sys::unshare(flags).map_err(|error| say("make namespaces")(&error))?;
        let mut network = None;
        if plan.network == Network::Pod {
            rustix::system::sethostname(plan.hostname.as_bytes()).map_err(|error| say("set the host name")(&error))?;
            loopback_up().map_err(|error| say("bring up lo")(&error))?;
            network = Some(open("/proc/self/ns/net").map_err(|error| say("open the network namespace")(&error))?);
        }
        for (name, value) in &plan.sysctls {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            fs::write(&path, value).map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
        }
        let mounts = crate::setup::make_base().map_err(|error| error.to_string())?;
        let own_pids = open("/proc/self/ns/pid").map_err(|error| say("open the process namespace")(&error))?;
        let mut namespaces = Namespaces { network, mounts, own_pids, pod_pids: None };
        if plan.pid == PidMode::Pod {
            let pids = namespaces.start_pause().map_err(|error| say("start the pod's pause process")(&error))?;
            namespaces.pod_pids = Some(pids);
        }
        Ok(namespaces)
    }

    /// The init of a shared process namespace: it reaps what is left to it and does nothing else.
    fn start_pause(&self) -> io::Result<OwnedFd> {
        match sys::fork(libc::CLONE_NEWPID as u64, None)? {
            Some(pid) => open(&format!("/proc/{pid}/ns/pid")),
            None => pause(),
        }
    }

    /// Forks into the right process namespace.
    pub(super) fn fork(&self, pids: Pids<'_>, mode: PidMode, cgroup: Option<&OwnedFd>) -> io::Result<Option<u32>> {
        let enter = |namespace: &OwnedFd| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID)).map_err(io::Error::from)
        };
        let mut flags = 0;
        match (pids, mode, &self.pod_pids) {
            (Pids::Of(namespace), ..) => enter(namespace)?,
            (Pids::Container, PidMode::Container, _) => flags = libc::CLONE_NEWPID as u64,
            (Pids::Container, PidMode::Pod, Some(namespace)) => enter(namespace)?,
            (Pids::Container, PidMode::Pod | PidMode::Host, _) => {}
        }
        let forked = sys::fork(flags, cgroup.map(AsFd::as_fd));
        if !matches!(forked, Ok(None)) {
            enter(&self.own_pids)?;
        }
        forked
    }
}

pub(super) fn open(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn pause() -> ! {
    sys::reset_signals();
    sys::ignore_children();
    // Without its shim the pod is over.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    rustix::thread::set_name(c"pause").ok();
    sys::close_all();
    loop {
        sys::wait_for_signal();
    }
}

/// Brings `lo` up in this network namespace: `RTM_NEWLINK` for index 1 with `IFF_UP`. Source: rtnetlink(7).
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    const LOOPBACK: i32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LOOPBACK.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    // Protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 128];
    let (length, _) = rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty())?;
    // nlmsgerr: the negative error follows the header; 0 acknowledges.
    match answer.get(16..20).filter(|_| length >= 20) {
        Some(code) => match i32::from_ne_bytes(code.try_into().expect("four bytes")) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
