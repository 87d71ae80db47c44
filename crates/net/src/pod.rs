//! A pod's place in the network: a veth, a host route, and permanent neighbours on both sides.
//!
//! There is no bridge: the pod sends everything to a gateway that is always there, the host routes each pod's address to its
//! own link. Modelled on Calico's data plane (`docs.tigera.io`, "about Kubernetes networking").

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::route::{Mac, Routes, VethPair};

/// What pods send to when they send anywhere. Nothing has these addresses: the neighbour entry alone makes them work.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The hardware address of the host's end of every pod's link.
const HOST_MAC: Mac = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];
/// Names of the host's ends begin with this.
pub const LINK_PREFIX: &str = "cor";

#[derive(Debug, thiserror::Error)]
#[error("could not {step} for the pod's network")]
pub struct Error {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn step<T>(step: &'static str, outcome: io::Result<T>) -> Result<T, Error> {
    outcome.map_err(|source| Error { step, source })
}

/// The host's end of a pod's link: `cor` and 12 digits of a hash, as names are at most 15 bytes.
pub fn link_name(pod_uid: &str) -> String {
    format!("{LINK_PREFIX}{:012x}", fnv1a(pod_uid.as_bytes()) & 0xffff_ffff_ffff)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A locally administered address made of the pod's own.
fn pod_mac(pod_uid: &str) -> Mac {
    let hash = fnv1a(pod_uid.as_bytes()).to_be_bytes();
    [hash[0] & 0xfc | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]]
}

/// Connects the pod whose network namespace is `netns`. Blocks for about a millisecond. Done again it repairs what is missing.
///
/// # Errors
/// [`Error`] names the step; what was done before is removed.
pub fn attach(pod_uid: &str, netns: BorrowedFd<'_>, ips: &[IpAddr], mtu: u32) -> Result<(), Error> {
    let outcome = connect(pod_uid, netns, ips, mtu);
    if outcome.is_err()
        && let Err(error) = detach(pod_uid, ips)
    {
        tracing::warn!(pod = pod_uid, %error, "half of a pod's network stays behind until the pod is removed");
    }
    outcome
}

/// Removes the pod's link and routes; what is not there is no error.
///
/// # Errors
/// [`Error`] when the kernel refuses.
pub fn detach(pod_uid: &str, ips: &[IpAddr]) -> Result<(), Error> {
    let mut routes = step("open rtnetlink", Routes::open())?;
    step("remove the link", routes.delete_link(&link_name(pod_uid)))?;
    ips.iter().try_for_each(|ip| step("remove a route", routes.delete_host_route(*ip)))
}

fn connect(pod_uid: &str, netns: BorrowedFd<'_>, ips: &[IpAddr], mtu: u32) -> Result<(), Error> {
    let name = link_name(pod_uid);
    let mut routes = step("open rtnetlink", Routes::open())?;
    step("remove an earlier link", routes.delete_link(&name))?;
    let peer_mac = pod_mac(pod_uid);
    let pair = VethPair { name: &name, mac: HOST_MAC, peer_name: "eth0", peer_mac, peer_netns: netns, mtu };
    step("make the link", routes.add_veth(&pair))?;
    configure_host_link(&name, ips)?;
    let index = step("find the link", routes.index_of(&name))?;
    step("set the link up", routes.set_up(index))?;
    step("enter the pod's namespace", inside(netns, || configure_pod(ips)))??;
    for ip in ips {
        step("add a neighbour", routes.add_neighbour(index, *ip, peer_mac))?;
        step("add a route", routes.add_host_route(index, *ip))?;
    }
    Ok(())
}

fn configure_host_link(name: &str, ips: &[IpAddr]) -> Result<(), Error> {
    let v4 = format!("/proc/sys/net/ipv4/conf/{name}");
    step("turn forwarding on", fs::write(format!("{v4}/forwarding"), "1"))?;
    // A pod may not send from an address that is not its own.
    step("check source addresses", fs::write(format!("{v4}/rp_filter"), "1"))?;
    if ips.iter().any(IpAddr::is_ipv6) {
        let v6 = format!("/proc/sys/net/ipv6/conf/{name}");
        // Without this IPv6 is silent for its first second.
        step("turn duplicate detection off", fs::write(format!("{v6}/accept_dad"), "0"))?;
        // A pod must not be able to steer the host's routes.
        step("refuse router advertisements", fs::write(format!("{v6}/accept_ra"), "0"))?;
        step("turn forwarding on", fs::write(format!("{v6}/forwarding"), "1"))?;
    }
    Ok(())
}

/// Lets connections to the host's loopback be translated to a pod: the kernel routes loopback addresses to no link otherwise.
/// The table keeps the pod itself from using it.
///
/// # Errors
/// [`Error`] when the setting cannot be written.
pub fn route_loopback(pod_uid: &str) -> Result<(), Error> {
    let setting = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", link_name(pod_uid));
    step("route loopback", fs::write(setting, "1"))
}

/// Runs in the pod's namespace.
fn configure_pod(ips: &[IpAddr]) -> Result<(), Error> {
    let mut routes = step("open rtnetlink in the pod", Routes::open())?;
    let loopback = step("find loopback in the pod", routes.index_of("lo"))?;
    step("set loopback up in the pod", routes.set_up(loopback))?;
    if ips.iter().any(IpAddr::is_ipv6) {
        step("turn duplicate detection off in the pod", fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0"))?;
        step("refuse router advertisements in the pod", fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0"))?;
    }
    let index = step("find eth0 in the pod", routes.index_of("eth0"))?;
    step("set eth0 up in the pod", routes.set_up(index))?;
    for ip in ips {
        let gateway = if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 };
        step("add an address in the pod", routes.add_address(index, *ip))?;
        step("add the gateway in the pod", routes.add_neighbour(index, gateway, HOST_MAC))?;
        step("add the default route in the pod", routes.add_default_route(index, gateway))?;
    }
    Ok(())
}

/// Sets loopback up in a namespace that has nothing else yet.
///
/// # Errors
/// [`Error`].
pub fn loopback_up(netns: BorrowedFd<'_>) -> Result<(), Error> {
    let set_up = || {
        let mut routes = step("open rtnetlink in the pod", Routes::open())?;
        let loopback = step("find loopback in the pod", routes.index_of("lo"))?;
        step("set loopback up in the pod", routes.set_up(loopback))
    };
    step("enter the pod's namespace", inside(netns, set_up))?
}

/// Runs `work` on a thread of its own that has entered `netns`: namespaces belong to threads, and this one's stays.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let enter = || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets this host forward packets, without losing the router advertisements that it listened to.
///
/// # Errors
/// [`Error`] when a setting cannot be written.
pub fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    step("turn IPv4 forwarding on", fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    if !ipv6 {
        return Ok(());
    }
    // Linux ignores router advertisements on a host that forwards unless accept_ra is 2.
    for entry in step("list the links", fs::read_dir("/proc/sys/net/ipv6/conf"))?.flatten() {
        let setting = entry.path().join("accept_ra");
        if fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            step("keep router advertisements", fs::write(setting, "2"))?;
        }
    }
    step("turn IPv6 forwarding on", fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))
}

/// Removes links and routes of pods that are not in `living` (link names).
///
/// # Errors
/// [`Error`] when the kernel refuses.
pub fn remove_strays(living: &[String]) -> Result<(), Error> {
    let mut routes = step("open rtnetlink", Routes::open())?;
    for (_, name) in step("list the links", routes.links())? {
        let is_pods = name
            .strip_prefix(LINK_PREFIX)
            .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_pods && !living.contains(&name) {
            step("remove a stray link", routes.delete_link(&name))?;
        }
    }
    Ok(())
}
