//! Listening sockets that the edge accepts on. Main makes and keeps them: the ports stay open while an edge is replaced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use wire::edge::{Role, Socket};

use crate::config::Config;

/// Where the edge answers DNS on the node; the service address leads there. Hosts often have a resolver on 53 already.
pub const DNS_PORT: u16 = 10053;
/// Connections that may wait while an edge is replaced.
const BACKLOG: i32 = 4096;

/// The sockets of the edge: those that `held` has already, and new ones for the rest.
///
/// # Errors
/// When a port is taken by another program.
pub fn for_edge(config: &Config, node_ips: &[IpAddr], held: Vec<(Socket, OwnedFd)>) -> Result<Vec<(Socket, OwnedFd)>> {
    let mut held = held;
    let mut all = Vec::new();
    for socket in wanted(config, node_ips) {
        let found = held.iter().position(|(have, _)| *have == socket);
        let descriptor = match found {
            Some(at) => held.swap_remove(at).1,
            None => open(&socket).with_context(|| format!("could not listen on {}", socket.address))?,
        };
        all.push((socket, descriptor));
    }
    Ok(all)
}

/// HTTP on every address; DNS on the node's own, because answers must leave from the address that was asked.
fn wanted(config: &Config, node_ips: &[IpAddr]) -> Vec<Socket> {
    let dual = node_ips.iter().any(IpAddr::is_ipv6);
    let any = std::iter::once(Ipv4Addr::UNSPECIFIED.into()).chain(dual.then_some(Ipv6Addr::UNSPECIFIED.into()));
    let socket = |role, ip, port| Socket { role, address: SocketAddr::new(ip, port) };
    let http =
        any.flat_map(|ip| [socket(Role::Http, ip, config.http_port), socket(Role::Https, ip, config.https_port)]);
    let dns = node_ips.iter().flat_map(|ip| [socket(Role::DnsUdp, *ip, DNS_PORT), socket(Role::DnsTcp, *ip, DNS_PORT)]);
    http.chain(dns).collect()
}

fn open(Socket { role, address }: &Socket) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let is_datagram = *role == Role::DnsUdp;
    let kind = if is_datagram { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if !is_datagram {
        // Connections that linger from before must not keep the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, address)?;
    if !is_datagram {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
