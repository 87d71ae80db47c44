//! What main and the edge say to each other over their private socket.
//!
//! Down go whole tables, each with a generation, and descriptors; up come acknowledgements and counters, which main treats as
//! hostile: everything is bounded and nothing in it is a name of anything of main's. Frames are a length (4 bytes, big-endian) and
//! JSON. The first frame of each side is its [`Hello`]; a side that does not know the other's version says so and closes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The version of this protocol. A new main speaks to an edge of the release before, or replaces it.
pub const VERSION: u32 = 2;
/// The longest frame. A rack's table with its certificates is a few hundred kB.
pub const MAX_FRAME: usize = 64 << 20;
/// The longest frame that the edge sends: main believes no more.
pub const MAX_UP_FRAME: usize = 1 << 20;
/// How long the access log may grow before main gives the edge another.
pub const LOG_LIMIT: u64 = 32 << 20;
/// The most sockets that the edge holds.
pub const MAX_SOCKETS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
}

/// From main to the edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Down {
    Hello(Hello),
    /// Listening sockets, whose descriptors travel with the first byte of this frame, in the order given.
    Listen {
        sockets: Vec<Socket>,
    },
    /// Replaces the table before, whole or not at all.
    Table(Box<Table>),
    /// The access log from now on; its descriptor travels with the first byte of this frame.
    Log,
    /// Asks for [`Up::Counters`].
    Count,
    /// Close the listeners, finish what runs, and exit.
    Drain,
}

/// From the edge to main.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Up {
    /// `sockets` are held already, by an edge that a new main adopts; their descriptors travel with the first byte of this
    /// frame, in the order given, so that main can give them to the next edge.
    Hello {
        version: u32,
        sockets: Vec<Socket>,
        generation: u64,
    },
    /// The table of this generation is in use, but for what `problems` names.
    Ack {
        generation: u64,
        problems: Vec<Problem>,
    },
    Counters(Counters),
    /// The access log has grown beyond [`LOG_LIMIT`]: the edge has no files, and asks for another.
    LogFull,
}

/// What a listening socket is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    pub role: Role,
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Http,
    Https,
    DnsUdp,
    DnsTcp,
}

/// A part of a table that could not be used, such as a certificate that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The index of the certificate in the table.
    pub certificate: usize,
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub requests: u64,
    pub connections: u64,
    pub dns_queries: u64,
}

/// Everything that the edge knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    pub generation: u64,
    pub certificates: Vec<Certificate>,
    /// By lower-case host name; `*.example.org` for one label; the empty name is every other host.
    pub hosts: BTreeMap<String, Host>,
    /// Indexed by [`Target::Upstream`].
    pub upstreams: Vec<Upstream>,
    pub dns: Dns,
}

/// A certificate chain and key in PEM, for the names that SNI asks for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Host names and wildcards it is offered for; none: it is the default.
    pub hosts: Vec<String>,
    pub chain: String,
    pub key: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Exact paths first, then prefixes from the longest: the first that matches decides.
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub path: PathMatch,
    pub target: Target,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    Exact(String),
    /// By elements: `/foo` is no prefix of `/foobar`.
    Prefix(String),
}

impl PathMatch {
    /// Whether a request's path matches. Source: networking/v1 `types.go`, `PathType`.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    Upstream(usize),
    /// Answered by the edge itself, such as 503 for a route that is closed.
    Status(u16),
}

/// What ingress-nginx's annotations set, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Bytes; 0 is no limit.
    pub body_limit: u64,
    pub connect_timeout_ms: u64,
    pub read_timeout_ms: u64,
    pub send_timeout_ms: u64,
    /// The application speaks TLS.
    pub upstream_tls: bool,
    /// Plain HTTP is answered with 308 to HTTPS.
    pub redirect_to_https: bool,
}

impl Default for Options {
    /// Source: ingress-nginx `docs/user-guide/nginx-configuration/configmap.md`.
    fn default() -> Self {
        Self {
            body_limit: 1 << 20,
            connect_timeout_ms: 5_000,
            read_timeout_ms: 60_000,
            send_timeout_ms: 60_000,
            upstream_tls: false,
            redirect_to_https: false,
        }
    }
}

/// The ready endpoints of a service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// `NAMESPACE-SERVICE-PORT`, for the access log, as ingress-nginx writes it.
    pub name: String,
    pub endpoints: Vec<SocketAddr>,
}

/// The cluster's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Such as `cluster.local`.
    pub domain: String,
    /// Addresses of names below the domain, such as `website.rack.svc`, relative to it.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// `_http._tcp.website.rack.svc` → port and target, relative to the domain.
    pub services: BTreeMap<String, Vec<Srv>>,
    /// External names: `db.rack.svc` → `db.example.org`.
    pub aliases: BTreeMap<String, String>,
    /// Names of addresses, for PTR.
    pub reverse: BTreeMap<IpAddr, Vec<String>>,
    /// Reverse zones that are ours, such as `96.10.in-addr.arpa`: what is not in `reverse` there does not exist.
    pub reverse_zones: Vec<String>,
    /// Ranges whose addresses have names such as `10-244-0-3.rack.pod`.
    pub pod_ranges: Vec<(IpAddr, u8)>,
    /// Where all other names are asked for.
    pub upstreams: Vec<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Srv {
    pub port: u16,
    pub target: String,
}

/// Puts a message into a frame.
///
/// # Panics
/// Never: every message is JSON.
pub fn frame(message: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_vec(message).expect("messages have string keys only");
    let length = u32::try_from(body.len()).expect("a table is shorter than 4 GiB");
    [&length.to_be_bytes()[..], &body].concat()
}

/// Why received bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    #[error("a frame of {0} bytes is longer than any message")]
    TooLong(usize),
    #[error("a frame is not a message of this version")]
    Message(#[from] serde_json::Error),
}

/// Takes the first whole message, at most `max` bytes long, out of `received`; `None` when there is none yet.
///
/// # Errors
/// [`BadFrame`]: the other side is not to be believed any more.
pub fn take<T: for<'de> Deserialize<'de>>(received: &mut Vec<u8>, max: usize) -> Result<Option<T>, BadFrame> {
    let Some(head) = received.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > max {
        return Err(BadFrame::TooLong(length));
    }
    let Some(body) = received.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice(body)?;
    received.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_one_by_one() {
        let first = Up::Ack { generation: 7, problems: vec![] };
        let second = Up::Counters(Counters { requests: 1, connections: 2, dns_queries: 3 });
        let mut wire = [frame(&first), frame(&second)].concat();
        let last = wire.pop();
        assert_eq!(take(&mut wire, MAX_UP_FRAME).expect("message"), Some(first));
        assert_eq!(take::<Up>(&mut wire, MAX_UP_FRAME).expect("incomplete"), None);
        wire.extend(last);
        assert_eq!(take(&mut wire, MAX_UP_FRAME).expect("message"), Some(second));
        assert!(wire.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(take::<Up>(&mut vec![0xff; 8], MAX_UP_FRAME), Err(BadFrame::TooLong(_))));
        assert!(matches!(take::<Up>(&mut vec![0, 0, 0, 2, b'{', b'}'], MAX_UP_FRAME), Err(BadFrame::Message(_))));
    }

    #[test]
    fn prefixes_match_by_elements() {
        let cases = [
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo/", "/foo", true),
            ("/foo", "/foobar", false),
            ("/", "/any", true),
            ("/a/b", "/a", false),
        ];
        for (prefix, path, expected) in cases {
            assert_eq!(PathMatch::Prefix(prefix.into()).matches(path), expected, "{prefix} {path}");
        }
        assert!(!PathMatch::Exact("/foo".into()).matches("/foo/"));
    }
}
