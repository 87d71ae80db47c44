//! `pods/proxy` and `services/proxy`: whatever HTTP a pod serves, through the API server.
//!
//! Sources: kubernetes `pkg/registry/core/pod/strategy.go` and `service/proxy.go` (`ResourceLocation`), apimachinery
//! `pkg/util/proxy/{upgradeaware,transport}.go` (redirections, links in pages).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::key::{GroupResource, Key};
use api::status::Status;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::header::{TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rustls_pki_types::ServerName;
use serde_json::Value;
use store::Snapshot;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::admit::Operation;
use crate::hooks::Stream;
use crate::http::exchange::{Endpoint, Exchange};
use crate::http::reply::{self, Body};
use crate::tunnel::asks_upgrade;

/// How long a pod may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a pod may take to begin its answer. Source: upstream's transport has no limit but the request's.
const ANSWER: Duration = Duration::from_secs(60);
/// Pages with links are rewritten when they are at most this long; longer ones pass as they are.
const MAX_PAGE: usize = 8 << 20;
const SLICES: GroupResource = GroupResource::new("discovery.k8s.io", "endpointslices");

/// What a path names: `[scheme:]name[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

/// Source: apimachinery `pkg/util/net/port_split.go`, `SplitSchemeNamePort`.
fn named(id: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    let https = match scheme {
        "" | "http" => false,
        "https" => true,
        _ => return None,
    };
    (!name.is_empty()).then_some(Named { https, name, port })
}

impl Exchange<'_> {
    /// Passes the request on to the pod, or to a pod of the service, that the path names.
    pub(crate) async fn proxy(
        &self,
        endpoint: Endpoint<'_>,
        body: Incoming,
        upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Status> {
        let id = endpoint.path.name.as_str();
        let of_pod = endpoint.path.resource == "pods";
        let what = if of_pod { "pod" } else { "service" };
        let Some(named) = named(id) else {
            return Err(Status::bad_request(format!("invalid {what} request {id:?}")));
        };
        let (prefix, rest) = split(self.parts.uri.path());
        if rest.is_empty() && matches!(self.parts.method, Method::GET | Method::HEAD) {
            return Ok(redirected(prefix, self.parts.uri.query()));
        }
        let registry = &self.server.registry;
        let snapshot = registry.store.snapshot();
        let place = crate::registry::Place::new(endpoint.served, &endpoint.path.namespace, named.name);
        let object = place.find(&snapshot)?.value();
        let by = self.connecting();
        let attributes = registry.attributes(Operation::Connect, place, "proxy", Some(&object), &snapshot, by);
        registry.admission.validate(&attributes, None).await?;
        let target = match of_pod {
            true => pod_address(&object, &named)?,
            false => service_address(&object, &named, &snapshot)?,
        };
        self.pass_on(&Target { https: named.https, address: target }, prefix, rest, body, upgrade).await
    }

    async fn pass_on(
        &self,
        target: &Target,
        prefix: &str,
        rest: &str,
        body: Incoming,
        upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Status> {
        let failed = |error: String| Status::unavailable(format!("error trying to reach service: {error}"));
        let address = target.address;
        let stream = match tokio::time::timeout(CONNECT, target.dial()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(format!("dial tcp {address}: {error}"))),
            Err(_) => return Err(failed(format!("dial tcp {address}: i/o timeout"))),
        };
        let mut sender = self.speak(stream, address).await.map_err(|error| failed(error.to_string()))?;
        let request = self.request(target, rest, body)?;
        let mut answer = match tokio::time::timeout(ANSWER, sender.send_request(request)).await {
            Ok(answer) => answer.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(Status::timeout("the pod did not answer in time")),
        };
        if let Some(response) = self.switched(&mut answer, upgrade)? {
            return Ok(response);
        }
        let mut response = answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        drop_hops(response.headers_mut());
        if let Some(moved) = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()) {
            let moved = within(moved, target, prefix);
            if let Ok(value) = HeaderValue::from_str(&moved) {
                response.headers_mut().insert(LOCATION, value);
            }
        }
        let has_links = is_page(response.headers()) && self.parts.method != Method::HEAD;
        if has_links { relinked(response, target, prefix).await } else { Ok(response) }
    }

    fn request(&self, target: &Target, rest: &str, body: Incoming) -> Result<Request<Incoming>, Status> {
        let path = if rest.is_empty() { "/" } else { rest };
        let uri = self.parts.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let mut request = Request::builder()
            .method(&self.parts.method)
            .uri(uri)
            .header(HOST, target.address.to_string())
            .body(body)
            .map_err(|error| Status::bad_request(format!("the request cannot be passed on: {error}")))?;
        for (name, value) in &self.parts.headers {
            // Credentials are for this server; a length goes with the body.
            let stays = name == AUTHORIZATION || name == HOST || name.as_str().starts_with("impersonate-");
            if !stays {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        drop_hops(request.headers_mut());
        if asks_upgrade(&self.parts.headers) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            for protocol in self.parts.headers.get_all(UPGRADE) {
                request.headers_mut().append(UPGRADE, protocol.clone());
            }
        }
        Ok(request)
    }
}

/// Where a request goes.
struct Target {
    https: bool,
    address: SocketAddr,
}

impl Target {
    /// Any certificate will do: pods make their own. Source: upstream's proxy transport, `InsecureSkipVerify`.
    async fn dial(&self) -> std::io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect(self.address).await?;
        if !self.https {
            return Ok(Box::new(tcp));
        }
        let config = wire::tls::unverified_client().map_err(std::io::Error::other)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
    }
}

/// The path up to the sub-resource, and what follows it.
fn split(path: &str) -> (&str, &str) {
    // /api/v1/namespaces/NS/pods/NAME/proxy
    let end = path.match_indices('/').nth(7).map_or(path.len(), |(at, _)| at);
    path.split_at(end)
}

/// Relative links of a page work only below a directory.
fn redirected(prefix: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = reply::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}/{query}")) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}

fn drop_hops(headers: &mut HeaderMap) {
    const HOPS: [&str; 5] = ["keep-alive", "proxy-connection", "te", "trailer", "proxy-authorization"];
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE].into_iter().chain(HOPS.map(HeaderName::from_static)) {
        headers.remove(name);
    }
}

fn address(ip: &str, port: u64) -> Result<SocketAddr, Status> {
    let ip: Option<IpAddr> = ip.parse().ok();
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    match (ip, port) {
        // Nothing of the node itself is to be had this way. Source: `proxyutil.IsProxyableIP`.
        (Some(ip), _) if !may_be_reached(ip) => Err(Status::bad_request("address not allowed")),
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err(Status::bad_request("address not allowed")),
    }
}

fn may_be_reached(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !link_local && !ip.is_unspecified() && !ip.is_multicast()
}

/// Without a port it is the first one that the pod's containers name, else 80.
fn pod_address(pod: &Value, named: &Named<'_>) -> Result<SocketAddr, Status> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let port = if named.port.is_empty() {
        let containers = list(&pod["spec"]["containers"]);
        let first = containers.iter().find_map(|container| container["ports"][0]["containerPort"].as_u64());
        first.unwrap_or(80)
    } else {
        named.port.parse().map_err(|_| Status::bad_request(format!("invalid port {:?}", named.port)))?
    };
    address(pod["status"]["podIPs"][0]["ip"].as_str().unwrap_or_default(), port)
}

/// A ready endpoint of the service's port that is named, or numbered; without a port it must have only one.
fn service_address(service: &Value, named: &Named<'_>, snapshot: &Snapshot) -> Result<SocketAddr, Status> {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is = |port: &&Value| match named.port {
        "" => ports.len() == 1,
        wanted => port["name"] == wanted || port["port"].as_u64().is_some_and(|number| number.to_string() == wanted),
    };
    let unavailable = |why: String| Status::unavailable(why);
    let found = ports
        .iter()
        .find(is)
        .ok_or_else(|| unavailable(format!("no service port {:?} found for service {:?}", named.port, named.name)))?;
    let port_name = found["name"].as_str().unwrap_or_default();
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
    let prefix = Key::namespace_prefix(&SLICES, text("namespace"));
    let slices = snapshot.range(&prefix, None).map(|object| object.value());
    let of_service = slices
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == text("name"))
        .collect::<Vec<_>>();
    let mut ready = of_service.iter().flat_map(|slice| {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports.filter(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let number = port.filter_map(|port| port["port"].as_u64()).next();
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true));
        ready.filter_map(move |endpoint| Some((endpoint["addresses"][0].as_str()?, number?)))
    });
    match ready.next() {
        Some((ip, port)) => address(ip, port),
        None => Err(unavailable(format!("no endpoints available for service {:?}", named.name))),
    }
}

fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html") && !headers.contains_key(CONTENT_ENCODING)
}

/// A page whose links lead back through the proxy.
async fn relinked(response: Response<Body>, target: &Target, prefix: &str) -> Result<Response<Body>, Status> {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_PAGE) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let page = Limited::new(body, MAX_PAGE).collect().await;
    let page = page.map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?;
    let page: Bytes = match String::from_utf8(page.to_bytes().to_vec()) {
        Ok(text) => with_links(&text, target, prefix).into(),
        Err(other) => other.into_bytes().into(),
    };
    parts.headers.insert(CONTENT_LENGTH, page.len().into());
    Ok(Response::from_parts(parts, reply::full(page)))
}

/// Source: transport.go, `atomsToAttrs`, the attributes that hold an address.
const LINKS: [&str; 6] = ["href", "src", "action", "cite", "data", "longdesc"];

/// Rewrites the addresses in a page's tags; everything else stays as it is.
fn with_links(page: &str, target: &Target, prefix: &str) -> String {
    let mut out = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let end = rest[open..].find('>').map_or(rest.len(), |close| open + close + 1);
        out.push_str(&rest[..open]);
        out.push_str(&tag(&rest[open..end], target, prefix));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn tag(tag: &str, target: &Target, prefix: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        out.push_str(before);
        let name = before[..equals].trim_end().rsplit(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default();
        let quote = after.chars().next().filter(|first| matches!(first, '"' | '\''));
        let Some(quote) = quote else {
            rest = after;
            continue;
        };
        let Some(length) = after[1..].find(quote) else {
            rest = after;
            break;
        };
        let value = &after[1..=length];
        out.push(quote);
        match LINKS.iter().any(|link| name.eq_ignore_ascii_case(link)) {
            true => out.push_str(&within(value, target, prefix)),
            false => out.push_str(value),
        }
        out.push(quote);
        rest = &after[length + 2..];
    }
    out.push_str(rest);
    out
}

/// An address of the pod's own as the client reaches it; other hosts' and relative ones stay.
fn within(link: &str, target: &Target, prefix: &str) -> String {
    let own = format!("{}://{}", if target.https { "https" } else { "http" }, target.address);
    let path = match link.strip_prefix(&own) {
        Some(path) => path,
        None if link.starts_with('/') && !link.starts_with("//") => link,
        None => return link.to_owned(),
    };
    if path.starts_with(prefix) { path.to_owned() } else { format!("{prefix}{path}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_have_schemes_and_ports() {
        let check = |id, expected: Option<(bool, &str, &str)>| {
            assert_eq!(named(id).map(|named| (named.https, named.name, named.port)), expected, "{id}");
        };
        check("web", Some((false, "web", "")));
        check("web:http", Some((false, "web", "http")));
        check("https:web:443", Some((true, "web", "443")));
        check("ftp:web:21", None);
        check(":80", None);
    }

    #[test]
    fn paths_are_split_behind_the_sub_resource() {
        let prefix = "/api/v1/namespaces/a/pods/web:80/proxy";
        assert_eq!(split(&format!("{prefix}/x/%2F")), (prefix, "/x/%2F"));
        assert_eq!(split(prefix), (prefix, ""));
    }

    #[test]
    fn links_lead_back_through_the_proxy() {
        let target = Target { https: false, address: "10.244.0.2:80".parse().unwrap() };
        let check = |page, expected| assert_eq!(with_links(page, &target, "/p"), expected);
        check("<a href=\"/rewriteme\">test</a>", "<a href=\"/p/rewriteme\">test</a>");
        check("<img src='http://10.244.0.2:80/x' alt='/y'> = /z", "<img src='/p/x' alt='/y'> = /z");
        check("<a href=\"rel\" href=\"//cdn/x\" href=\"/p/a\">", "<a href=\"rel\" href=\"//cdn/x\" href=\"/p/a\">");
        check("<a href=\"/un", "<a href=\"/un");
    }

    #[test]
    fn a_pods_first_port_is_meant() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIPs": [{"ip": "10.244.0.2"}]}});
        let at = |id| pod_address(&pod, &named(id).unwrap()).map(|address| address.to_string());
        assert_eq!(at("web").unwrap(), "10.244.0.2:8080");
        assert_eq!(at("web:81").unwrap(), "10.244.0.2:81");
        assert!(address("127.0.0.1", 80).is_err() && address("169.254.169.254", 80).is_err());
    }
}
