//! Connections that the kernel remembers, forgotten when they would lead to an endpoint that is gone.
//!
//! Only UDP needs it: a TCP client notices. Sources: kubernetes `pkg/proxy/conntrack/cleanup.go`,
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::netlink::{DUMP, Family, Message, Socket, attributes};
use crate::nft;
use crate::proxy::{Frontend, Protocol, Services};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

/// Forgets UDP flows to frontends of `changed` whose answers come from something that is no endpoint any more.
///
/// # Errors
/// The kernel's.
pub fn forget_stale(services: &Services, changed: &BTreeSet<Frontend>) -> io::Result<usize> {
    let is_udp = |frontend: &&Frontend| frontend.protocol() == Protocol::Udp;
    let watched: Vec<&Frontend> = changed.iter().filter(is_udp).collect();
    if watched.is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::open(Family::Netfilter)?;
    const UNSPECIFIED: u8 = 0;
    let flows = socket.dump(Message::new(GET, DUMP, &nft::header(UNSPECIFIED)))?;
    let mut forgotten = 0;
    for flow in &flows {
        let Some((raw, original, reply)) = parse(&flow.payload) else { continue };
        let Some(frontend) = watched.iter().find(|frontend| leads_to(frontend, &original)) else { continue };
        let alive = services
            .get(*frontend)
            .is_some_and(|backend| backend.endpoints.contains(&(reply.source, reply.source_port)));
        if alive {
            continue;
        }
        let family = flow.payload.first().copied().unwrap_or(UNSPECIFIED);
        let message = Message::new(DELETE, 0, &nft::header(family)).nest(ORIGINAL, |tuple| tuple.raw(raw));
        match socket.request(message) {
            Ok(()) => forgotten += 1,
            // It ended by itself in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

fn leads_to(frontend: &Frontend, original: &Tuple) -> bool {
    if original.protocol != frontend.protocol() as u8 {
        return false;
    }
    match frontend {
        Frontend::Address(ip, _, port) | Frontend::HostAddress(ip, _, port) => {
            original.destination == *ip && original.destination_port == *port
        }
        Frontend::NodePort { ipv4, port, .. } | Frontend::HostPort { ipv4, port, .. } => {
            original.destination.is_ipv4() == *ipv4 && original.destination_port == *port
        }
    }
}

pub(crate) fn parse(payload: &[u8]) -> Option<(&[u8], Tuple, Tuple)> {
    let find = |wanted| attributes(payload.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (original, reply) = (find(ORIGINAL)?, find(REPLY)?);
    Some((original, tuple(original)?, tuple(reply)?))
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let part = |wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (ip, protocol) = (part(1)?, part(2)?);
    let address = |v4: u16, v6: u16| {
        attributes(ip).find_map(|(kind, value)| match kind {
            kind if kind == v4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            kind if kind == v6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => None,
        })
    };
    let field = |wanted| attributes(protocol).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let port = |wanted| field(wanted)?.try_into().ok().map(u16::from_be_bytes);
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *field(1)?.first()?,
        source_port: port(2)?,
        destination_port: port(3)?,
    })
}
