//! What happens to headers on their way through, as ingress-nginx has it.
//!
//! Source: ingress-nginx `rootfs/etc/nginx/template/nginx.tmpl`, `proxy_set_header`; RFC 9110 section 7.6.1 for hop-by-hop ones.

use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, SERVER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// An application that takes it for an environment variable would be led astray (httpoxy).
const PROXY: HeaderName = HeaderName::from_static("proxy");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the application is told about the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub client: IpAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port that was connected to.
    pub port: u16,
    /// As the client wrote it.
    pub host: &'a str,
    pub request_id: &'a str,
}

/// The host that a request is for, as written; `None` when it names none, or two.
pub fn host<B>(request: &Request<B>) -> Option<&str> {
    let mut named = request.headers().get_all(HOST).iter();
    let header = named.next().map(HeaderValue::to_str).transpose().ok()?;
    if named.next().is_some() {
        return None;
    }
    // HTTP/2 has :authority, an absolute target of HTTP/1.1 its own: RFC 9112 section 3.2.2 lets the target win.
    match (request.uri().authority(), header) {
        (Some(authority), Some(header))
            if request.version() == Version::HTTP_2 && !authority.as_str().eq_ignore_ascii_case(header) =>
        {
            None
        }
        (Some(authority), _) => Some(authority.as_str()),
        (None, header) => header,
    }
    .filter(|host| is_host(host))
}

fn is_host(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]~%".contains(&byte);
    !host.is_empty() && host.bytes().all(allowed)
}

/// The name in a host: lower-case, without port and trailing dot.
pub fn host_name(host: &str) -> String {
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether a request asks to leave HTTP, as WebSockets do.
pub fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(UPGRADE)
        && named_by_connection(request.headers()).contains(&UPGRADE)
}

/// Makes a request's headers those that the application gets.
pub fn to_application(headers: &mut HeaderMap, origin: &Origin<'_>, upgrade: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgrade);
    remove_hop_by_hop(headers);
    for name in [EXPECT, PROXY] {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let before = headers.remove(FORWARDED_FOR);
    let mut set = |name: &'static str, value: &str| {
        // All of them are host names, numbers or tokens that arrived in a header.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let client = origin.client.to_string();
    set("host", origin.host);
    set("x-request-id", origin.request_id);
    set("x-real-ip", &client);
    set("x-forwarded-for", &client);
    set("x-forwarded-host", origin.host);
    set("x-forwarded-port", &origin.port.to_string());
    set("x-forwarded-proto", origin.scheme);
    set("x-forwarded-scheme", origin.scheme);
    set("x-scheme", origin.scheme);
    if let Some(before) = before {
        headers.insert(HeaderName::from_static("x-original-forwarded-for"), before);
    }
}

/// Makes an answer's headers those that the client gets.
pub fn to_client(headers: &mut HeaderMap, switching: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| switching);
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    headers.remove(SERVER);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The target of a request in the form that applications expect.
pub fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    // What frames the message is not the client's to remove.
    names.filter_map(|name| name.trim().parse().ok()).filter(|name| *name != CONTENT_LENGTH && *name != HOST).collect()
}
