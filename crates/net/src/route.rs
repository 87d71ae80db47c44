//! Links, addresses, routes and neighbours: the few rtnetlink requests that a pod's network needs.
//!
//! Source: `include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,veth}.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{CREATE, DUMP, EXCLUSIVE, Family, Message, REPLACE, Socket, attributes};

/// The protocol number on every route of ours, so that they can be told from the owner's.
pub const PROTOCOL: u8 = 119;

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDR: u16 = 20;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;

const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const LINKINFO: u16 = 18;
const NET_NS_FD: u16 = 28;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const ENODEV: i32 = 19;
const ESRCH: i32 = 3;

/// A hardware address.
pub type Mac = [u8; 6];

/// rtnetlink in one network namespace.
pub struct Routes(Socket);

/// A veth pair to be made: one end here, the other in another namespace.
pub struct VethPair<'a> {
    pub name: &'a str,
    pub mac: Mac,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_netns: BorrowedFd<'a>,
    pub mtu: u32,
}

impl Routes {
    /// # Errors
    /// When the kernel has no rtnetlink.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(Family::Route)?))
    }

    /// Makes both ends, down.
    ///
    /// # Errors
    /// The kernel's, such as `EEXIST`.
    pub fn add_veth(&mut self, pair: &VethPair<'_>) -> io::Result<()> {
        let message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &link_header(0, 0, 0))
            .text(IFNAME, pair.name)
            .attr(ADDRESS, &pair.mac)
            .u32(MTU, pair.mtu)
            .nest(LINKINFO, |info| {
                info.attr(1, b"veth").nest(2, |data| {
                    data.nest(1, |mut peer| {
                        peer = peer.raw(&link_header(0, 0, 0));
                        peer.text(IFNAME, pair.peer_name)
                            .attr(ADDRESS, &pair.peer_mac)
                            .u32(MTU, pair.mtu)
                            .u32(NET_NS_FD, pair.peer_netns.as_raw_fd().cast_unsigned())
                    })
                })
            });
        self.0.request(message)
    }

    /// Removes a link; none of that name is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        ignore(ENODEV, self.0.request(Message::new(DEL_LINK, 0, &link_header(0, 0, 0)).text(3, name)))
    }

    /// # Errors
    /// The kernel's.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.0.request(Message::new(NEW_LINK, 0, &link_header(index, IFF_UP, IFF_UP)))
    }

    /// Every link's index and name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<(u32, String)>> {
        let answers = self.0.dump(Message::new(GET_LINK, DUMP, &link_header(0, 0, 0)))?;
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let index = u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?);
                let name = attributes(answer.payload.get(16..)?).find(|(kind, _)| *kind == 3)?.1;
                Some((index, String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned()))
            })
            .collect())
    }

    /// # Errors
    /// The kernel's, or that there is no such link.
    pub fn mtu_of(&mut self, index: u32) -> io::Result<u32> {
        let answers = self.0.ask(Message::new(GET_LINK, 0, &link_header(index, 0, 0)))?;
        let attributes = answers.iter().flat_map(|answer| attributes(answer.payload.get(16..).unwrap_or_default()));
        let mtu = attributes.filter(|(kind, _)| *kind == MTU).find_map(|(_, value)| value.try_into().ok());
        mtu.map(u32::from_ne_bytes).ok_or_else(|| io::Error::from_raw_os_error(ENODEV))
    }

    /// # Errors
    /// `NotFound` when there is no link of that name.
    pub fn index_of(&mut self, name: &str) -> io::Result<u32> {
        self.links()?
            .into_iter()
            .find(|(_, n)| n == name)
            .map(|(i, _)| i)
            .ok_or_else(|| io::Error::from_raw_os_error(ENODEV))
    }

    /// Adds an address with its full length as prefix; one that is there already is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        const NO_DAD: u8 = 2;
        let (family, bytes, width) = parts(ip);
        let mut header = vec![family, width, if ip.is_ipv6() { NO_DAD } else { 0 }, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        self.0.request(Message::new(NEW_ADDR, CREATE | REPLACE, &header).attr(2, &bytes).attr(1, &bytes))
    }

    /// A neighbour that is never asked for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_neighbour(&mut self, index: u32, ip: IpAddr, mac: Mac) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let (family, bytes, _) = parts(ip);
        let mut header = vec![family, 0, 0, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        header.extend_from_slice(&PERMANENT.to_ne_bytes());
        header.extend_from_slice(&[0, 0]);
        self.0.request(Message::new(NEW_NEIGHBOUR, CREATE | REPLACE, &header).attr(1, &bytes).attr(2, &mac))
    }

    /// Routes one address to a link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_host_route(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let (family, bytes, width) = parts(ip);
        self.0.request(
            Message::new(NEW_ROUTE, CREATE | REPLACE, &route_header(family, width, SCOPE_LINK))
                .attr(1, &bytes)
                .u32(4, index),
        )
    }

    /// Removes the route of one address; none is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_host_route(&mut self, ip: IpAddr) -> io::Result<()> {
        let (family, bytes, width) = parts(ip);
        ignore(
            ESRCH,
            self.0.request(Message::new(DEL_ROUTE, 0, &route_header(family, width, SCOPE_NOWHERE)).attr(1, &bytes)),
        )
    }

    /// Routes everything to `gateway`, which needs no address of its own on the link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        const ONLINK: u32 = 4;
        let (family, bytes, _) = parts(gateway);
        let mut header = route_header(family, 0, SCOPE_UNIVERSE);
        header[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        self.0.request(Message::new(NEW_ROUTE, CREATE | REPLACE, &header).attr(5, &bytes).u32(4, index))
    }

    /// The addresses and links of all host routes of ours.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own_host_routes(&mut self) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            for answer in self.0.dump(Message::new(GET_ROUTE, DUMP, &route_header(family, 0, SCOPE_UNIVERSE)))? {
                let Some([_, _, _, _, _, PROTOCOL, ..]) = answer.payload.get(..12) else { continue };
                let mut of_interest = (None, None);
                for (kind, value) in attributes(&answer.payload[12..]) {
                    match kind {
                        1 => of_interest.0 = address(value),
                        4 => of_interest.1 = value.try_into().ok().map(u32::from_ne_bytes),
                        _ => {}
                    }
                }
                if let (Some(ip), Some(index)) = of_interest {
                    found.push((ip, index));
                }
            }
        }
        Ok(found)
    }

    /// The source address that the kernel would use towards `destination`, and the link it would leave by.
    ///
    /// # Errors
    /// `Network is unreachable` when there is no route.
    pub fn source_towards(&mut self, destination: IpAddr) -> io::Result<(Option<IpAddr>, u32)> {
        let (family, bytes, width) = parts(destination);
        let message = Message::new(GET_ROUTE, 0, &route_header_any(family, width)).attr(1, &bytes);
        let answers = self.0.ask(message)?;
        let mut found = (None, 0);
        for (kind, value) in answers.iter().flat_map(|answer| attributes(answer.payload.get(12..).unwrap_or_default()))
        {
            match kind {
                7 => found.0 = address(value),
                4 => found.1 = value.try_into().ok().map_or(0, u32::from_ne_bytes),
                _ => {}
            }
        }
        Ok(found)
    }
}

const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&change.to_ne_bytes());
    header
}

/// `struct rtmsg`, for a unicast route of ours in the main table.
fn route_header(family: u8, width: u8, scope: u8) -> Vec<u8> {
    const MAIN_TABLE: u8 = 254;
    const UNICAST: u8 = 1;
    vec![family, width, 0, 0, MAIN_TABLE, PROTOCOL, scope, UNICAST, 0, 0, 0, 0]
}

fn route_header_any(family: u8, width: u8) -> Vec<u8> {
    vec![family, width, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn parts(ip: IpAddr) -> (u8, Vec<u8>, u8) {
    match ip {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec(), 32),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec(), 128),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn ignore(code: i32, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(code) => Ok(()),
        other => other,
    }
}
