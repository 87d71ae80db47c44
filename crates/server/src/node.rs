//! Requests that a pod's node answers: log, exec, attach, portforward.
//!
//! The request goes on to the node's kubelet endpoint.
//! Source: kubernetes `pkg/registry/core/pod/{strategy.go,rest/log.go,rest/subresources.go}`.

use std::time::Duration;

use api::field;
use api::status::{Reason, Status};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use kinds::kind::{Subresource, Verb};
use serde_json::Value;

use crate::admit::Operation;
use crate::hooks::NodeAddress;
use crate::http::exchange::{Endpoint, Exchange, not_allowed};
use crate::http::reply::{self, Body};
use crate::path::Query;
use crate::tunnel::asks_upgrade;

/// The kubelet's port where a node does not tell its own.
const KUBELET_PORT: u16 = 10250;

/// How long a node may take to accept a connection and to begin its answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// As much of a node's error as is passed on.
const MAX_ERROR: usize = 4096;

/// Addresses of a node in the order in which they are tried.
const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "InternalDNS", "Hostname", "ExternalDNS"];

impl Exchange<'_> {
    pub(crate) async fn node(
        &self,
        endpoint: Endpoint<'_>,
        sub: &Subresource,
        body: Incoming,
        upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Status> {
        let (verb, name) = match self.parts.method {
            Method::GET => (Verb::Get, "get"),
            Method::POST => (Verb::Create, "create"),
            _ => return Err(not_allowed(endpoint, self.parts.method.as_str())),
        };
        self.allowed(endpoint, verb, name)?;
        let registry = &self.server.registry;
        let snapshot = registry.store.snapshot();
        let at = endpoint.place();
        let pod = registry.value(endpoint.served, at.find(&snapshot)?);
        let by = self.connecting();
        let attributes = registry.attributes(Operation::Connect, at, sub.name, Some(&pod), &snapshot, by);
        registry.admission.validate(&attributes, None).await?;

        let target = target(&pod, sub.name, self.query)?;
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
            if sub.name == "log" {
                // Nothing has run yet, so nothing was written.
                let mut nothing = Response::new(reply::full(Bytes::new()));
                *nothing.status_mut() = StatusCode::NO_CONTENT;
                return Ok(nothing);
            }
            return Err(Status::bad_request(format!("pod {} does not have a host assigned", at.name)));
        };
        let nodes = registry.catalog.find("", "v1", "nodes").ok_or_else(Status::no_such_resource)?;
        let place = crate::registry::Place { served: nodes, namespace: "", name: node };
        let node = address(node, &place.find(&snapshot)?.value())?;
        if sub.name != "log" && !asks_upgrade(&self.parts.headers) {
            return Err(Status::bad_request(
                "you must specify at least one of the following headers: Connection: Upgrade",
            ));
        }
        self.forward(&node, &target, body, upgrade).await
    }

    async fn forward(
        &self,
        node: &NodeAddress,
        target: &str,
        body: Incoming,
        upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Status> {
        let late = |_| Status::timeout(format!("node {:?} did not answer in time", node.node));
        let broken = |error: hyper::Error| unreachable(node, &error);
        let dial = self.server.node_dialer.dial(node);
        let stream = tokio::time::timeout(NODE_TIMEOUT, dial).await.map_err(late)??;
        let mut sender = self.speak(stream, node.node.clone()).await.map_err(broken)?;
        let upgrading = asks_upgrade(&self.parts.headers);
        let bytes = if upgrading { Bytes::new() } else { crate::http::body::read(body).await? };
        let request = request(&self.parts.method, node, target, &self.parts.headers, upgrading, bytes)?;
        let answer = sender.send_request(request);
        let mut answer = tokio::time::timeout(NODE_TIMEOUT, answer).await.map_err(late)?.map_err(broken)?;
        if let Some(response) = self.switched(&mut answer, upgrade)? {
            return Ok(response);
        }
        if answer.status().is_success() {
            let (mut parts, body) = answer.into_parts();
            for hop in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
                parts.headers.remove(hop);
            }
            let body = body.map_err(std::io::Error::other).boxed_unsync();
            return Ok(Response::from_parts(parts, body));
        }
        let code = answer.status();
        // What cannot be read of an error does not change which error it is.
        let text = Limited::new(answer.into_body(), MAX_ERROR).collect().await;
        let text = text.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        Err(refusal(code, &text))
    }
}

fn request(
    method: &Method,
    node: &NodeAddress,
    target: &str,
    headers: &HeaderMap,
    upgrading: bool,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, Status> {
    let host = if node.host.contains(':') {
        format!("[{}]:{}", node.host, node.port)
    } else {
        format!("{}:{}", node.host, node.port)
    };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, host)
        .body(Full::new(body))
        .map_err(|error| Status::internal(format!("the request to the node is malformed: {error}")))?;
    for (name, value) in headers {
        // The user's credentials stay here: the node trusts the server.
        let passed = matches!(name.as_str(), "user-agent" | "x-stream-protocol-version")
            || upgrading && (name == CONNECTION || name == UPGRADE || name.as_str().starts_with("sec-websocket-"));
        if passed {
            request.headers_mut().append(name.clone(), value.clone());
        }
    }
    if upgrading {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    Ok(request)
}

fn unreachable(node: &NodeAddress, error: &hyper::Error) -> Status {
    Status::internal(format!("error dialing backend: node {:?} at {}: {error}", node.node, node.host))
}

/// The node's refusal, with its code and in its words.
fn refusal(code: StatusCode, text: &str) -> Status {
    let mut status = match code {
        StatusCode::INTERNAL_SERVER_ERROR => return Status::internal(text),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Status::internal(format!("the node refused the server's own credentials: {text}"));
        }
        _ => Status::bad_request(text),
    };
    status.code = code.as_u16();
    status.reason = match code {
        StatusCode::BAD_REQUEST => Reason::BadRequest,
        StatusCode::NOT_FOUND => Reason::NotFound,
        StatusCode::SERVICE_UNAVAILABLE => Reason::ServiceUnavailable,
        StatusCode::TOO_MANY_REQUESTS => Reason::TooManyRequests,
        _ => Reason::Unknown,
    };
    status
}

/// Where the node's kubelet listens.
fn address(name: &str, node: &Value) -> Result<NodeAddress, Status> {
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &&str| addresses.iter().find(|address| address["type"] == **kind)?["address"].as_str();
    let Some(host) = ADDRESS_TYPES.iter().find_map(of) else {
        return Err(Status::internal(format!("no preferred addresses found; node {name:?} reports none")));
    };
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(KUBELET_PORT);
    Ok(NodeAddress { node: name.to_owned(), host: host.to_owned(), port })
}

/// The kubelet's path and query for a sub-resource of a pod.
fn target(pod: &Value, subresource: &str, query: &Query) -> Result<String, Status> {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    if subresource == "portforward" {
        return Ok(format!("/portForward/{namespace}/{name}{}", forwarded_ports(query)?));
    }
    let container = || container(pod, name, query.get("container").unwrap_or_default());
    if subresource == "log" {
        let parameters = log_parameters(name, query)?;
        let container = container()?;
        return Ok(format!("/containerLogs/{namespace}/{name}/{container}{parameters}"));
    }
    let container = container()?;
    let mut parameters = Vec::new();
    for (asked, passed) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(asked) {
            parameters.push(format!("{passed}=1"));
        }
    }
    if subresource == "exec" {
        parameters.extend(query.all("command").map(|word| format!("command={}", encoded(word))));
        if query.get("command").is_none() {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
    }
    Ok(format!("/{subresource}/{namespace}/{name}/{container}?{}", parameters.join("&")))
}

/// The ports for clients that name them in the request. Source: `strategy.go`, `streamParams`.
fn forwarded_ports(query: &Query) -> Result<String, Status> {
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|ports| ports.split(',')) {
        let port: i32 = text
            .parse()
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
        ports.push(port.to_string());
    }
    Ok(if ports.is_empty() { String::new() } else { format!("?port={}", ports.join(",")) })
}

/// The container that is meant; a pod with one needs no name.
fn container<'a>(pod: &'a Value, name: &str, asked: &'a str) -> Result<&'a str, Status> {
    let names = |list: &str| -> Vec<&'a str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        return match [&containers, &init, &ephemeral].iter().any(|list| list.contains(&asked)) {
            true => Ok(asked),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    match (&containers[..], &init[..], &ephemeral[..]) {
        ([only], ..) => Ok(only),
        ([], ..) => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => {
            let all = [&init[..], &containers, &ephemeral].concat().join(" ");
            let why = format!("a container name must be specified for pod {name}, choose one of: [{all}]");
            Err(Status::bad_request(why))
        }
    }
}

/// The options of a log, checked.
fn log_parameters(pod: &str, query: &Query) -> Result<String, Status> {
    let mut parameters = Vec::new();
    let mut errors = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            parameters.push(format!("{flag}=true"));
        }
    }
    let mut number = |name: &str, least: i64| -> Result<(), Status> {
        let Some(text) = query.get(name).filter(|text| !text.is_empty()) else { return Ok(()) };
        let value: i64 = text
            .parse()
            .map_err(|_| Status::bad_request(format!("invalid {name} {text:?}: it must be a whole number")))?;
        if value < least {
            let why = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(field::Error::invalid(&field::Path::new(name), value, why));
        }
        parameters.push(format!("{name}={value}"));
        Ok(())
    };
    number("tailLines", 0)?;
    number("limitBytes", 1)?;
    number("sinceSeconds", 1)?;
    if let Some(time) = query.get("sinceTime").filter(|time| !time.is_empty()) {
        if query.get("sinceSeconds").is_some_and(|seconds| !seconds.is_empty()) {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(field::Error::forbidden(&field::Path::new(""), why));
        }
        if time.parse::<jiff::Timestamp>().is_err() {
            return Err(Status::bad_request(format!("invalid sinceTime {time:?}: it must be in the form of RFC 3339")));
        }
        parameters.push(format!("sinceTime={}", encoded(time)));
    }
    match query.get("stream").unwrap_or_default() {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if query.get("tailLines").is_some_and(|lines| !lines.is_empty()) {
                let why = "`tailLines` and specific `stream` are mutually exclusive for now";
                errors.push(field::Error::forbidden(&field::Path::new(""), why));
            }
            parameters.push(format!("stream={stream}"));
        }
        other => {
            let path = field::Path::new("stream");
            errors.push(field::Error::not_supported(&path, other, &["All", "Stderr", "Stdout"]));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", pod, &errors));
    }
    Ok(if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) })
}

/// Percent-encodes a query's value.
fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(containers: &[&str], subresource: &str, query: &str, expected: &str) {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers}});
        let got = target(&pod, subresource, &Query::parse(query)).unwrap_or_else(|status| status.message);
        assert_eq!(got, expected);
    }

    #[test]
    fn paths_at_the_node() {
        check(&["a"], "log", "follow=true&tailLines=10", "/containerLogs/n/p/a?follow=true&tailLines=10");
        check(
            &["a"],
            "exec",
            "command=sh&command=-c&command=a%20b&stdin=true&tty=true",
            "/exec/n/p/a?input=1&tty=1&command=sh&command=-c&command=a%20b",
        );
        check(&["a"], "attach", "stdout=1", "/attach/n/p/a?output=1");
        check(&["a"], "portforward", "", "/portForward/n/p");
        check(&["a"], "portforward", "ports=80&ports=443", "/portForward/n/p?port=80,443");
        check(&["a"], "portforward", "ports=x", "strconv.ParseInt: parsing \"x\": invalid syntax");
    }

    #[test]
    fn a_pod_with_more_containers_needs_a_name() {
        check(&["a", "b"], "log", "", "a container name must be specified for pod p, choose one of: [a b]");
        check(&["a", "b"], "log", "container=c", "container c is not valid for pod p");
        check(&["a", "b"], "log", "container=b", "/containerLogs/n/p/b");
    }

    #[test]
    fn log_options_are_checked() {
        check(
            &["a"],
            "log",
            "tailLines=-1",
            "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        );
        check(&["a"], "log", "tailLines=x", "invalid tailLines \"x\": it must be a whole number");
    }

    #[test]
    fn the_internal_address_comes_first() {
        let node = json!({"status": {"addresses": [
            {"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.0.0.1"},
        ], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}}}});
        let expected = NodeAddress { node: "n".to_owned(), host: "10.0.0.1".to_owned(), port: 10251 };
        assert_eq!(address("n", &node).unwrap(), expected);
    }
}
