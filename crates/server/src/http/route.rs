//! From a request to its answer: authentication, authorization, and the endpoint that the path names.
//!
//! Source: apiserver `pkg/server/config.go` (`DefaultBuildHandlerChain`), `pkg/endpoints/installer.go`.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use api::patch::apply::manager_of_agent;
use api::status::Status;
use futures_util::FutureExt;
use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use kinds::kind::{Action, Subresource, Verb};
use tracing::error;

use super::exchange::{Endpoint, Exchange, Stop, not_allowed, single};
use super::negotiate::{Form, Format, Offer};
use super::reply::{self, Body};
use super::stream::{self, Sending};
use super::takeover::Takeover;
use crate::admit::Warnings;
use crate::audit;
use crate::health;
use crate::identity::{self, PeerCertificates, User};
use crate::impersonate;
use crate::openid;
use crate::path::{Attributes, Query, Resource, Target};
use crate::registry::list::When;
use crate::registry::metadata;
use crate::server::Server;

/// Upstream's time for requests that are not watches, logs or streams.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Watches without a time-out of their own last this long, and up to as long again.
const MIN_WATCH: Duration = Duration::from_secs(1800);

/// Served kinds that upstream tells users to leave, by group and resource.
const DEPRECATED: [(&str, &str, &str); 1] =
    [("", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")];

impl Server {
    /// Answers one request. A panic in a handler is logged and becomes a 500.
    pub(crate) async fn handle(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        certificates: PeerCertificates,
    ) -> Response<Body> {
        #[cfg(feature = "planted")]
        if planted::every(planted::Bug::LeakedDescriptor, 10) {
            std::mem::forget(std::fs::File::open("/dev/null"));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let received = self.registry.now();
        let id = metadata::uuid(&self.registry.rng);
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let attributes = Attributes::parse(&parts.method, parts.uri.path(), &query);
        let warnings = Warnings::default();
        let mut seen = Seen::default();
        let answer = async {
            match self.identify(&parts, &certificates, &attributes, &mut seen).await {
                Ok(user) => {
                    let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
                    let exchange = Exchange {
                        server: self,
                        parts: &parts,
                        query: &query,
                        user: &user,
                        agent: manager_of_agent(agent),
                        warnings: &warnings,
                    };
                    exchange.answer(&attributes, body, upgrade).await
                }
                Err(status) => reply::status(&status),
            }
        };
        let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                error!(method = %parts.method, path = parts.uri.path(), %peer, "a handler panicked");
                let why = "This request caused apiserver to panic. Look in the logs for details.";
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, why)
            }
        };
        reply::warn(&mut response, &warnings.take());
        if let Some(audit) = &self.audit {
            let agent = parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let event = audit::Event {
                id: &id,
                received,
                answered: self.registry.now(),
                user: &seen.real,
                impersonated: seen.acted_as.as_ref(),
                attributes: &attributes,
                uri: parts.uri.path_and_query().map_or("", |uri| uri.as_str()),
                source: peer.ip().to_string(),
                agent,
                code: response.status().as_u16(),
            };
            if event.is_kept() {
                audit.record(&event);
            }
        }
        let id = HeaderValue::from_str(&id).expect("a uuid is a header value");
        response.headers_mut().insert(HeaderName::from_static("audit-id"), id);
        response
    }

    /// Finds out who asks, as whom, and whether they may.
    async fn identify(
        &self,
        parts: &Parts,
        certificates: &PeerCertificates,
        attributes: &Attributes,
        seen: &mut Seen,
    ) -> Result<User, Status> {
        let real = self.authenticator.authenticate(parts, certificates).await?;
        seen.real = real.clone();
        let user = impersonate::effective(&*self.authorizer, real, &parts.headers)?;
        if user != seen.real {
            seen.acted_as = Some(user.clone());
        }
        identity::authorize(&*self.authorizer, &user, attributes)?;
        Ok(user)
    }
}

/// What audit wants to know of a request's identity.
#[derive(Default)]
struct Seen {
    real: User,
    acted_as: Option<User>,
}

impl Exchange<'_> {
    async fn answer(&self, attributes: &Attributes, body: Incoming, upgrade: OnUpgrade) -> Response<Body> {
        match &attributes.target {
            Target::Path(path) => self.outside(path),
            Target::Resource(path) => match self.resource(&attributes.verb, path, body, upgrade).await {
                Ok(response) => response,
                Err(Stop::Answered(response)) => *response,
                Err(Stop::Refused(status)) => reply::status(&status),
            },
        }
    }

    /// Paths that name no resource.
    fn outside(&self, path: &str) -> Response<Body> {
        if self.parts.method != Method::GET && self.parts.method != Method::HEAD {
            return reply::text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
        }
        let (headers, server) = (&self.parts.headers, self.server);
        if let Some(response) = server.discovery.answer(path, headers, self.query) {
            return response;
        }
        if let Some(response) = server.openapi.answer(path, headers, self.query) {
            return response;
        }
        if let Some(response) = health::answer(server, path, self.query) {
            return response;
        }
        if let Some(response) = openid::answer(server, path) {
            return response;
        }
        match path {
            "/" => {
                let paths = json_paths(server);
                reply::value(StatusCode::OK, Format::Pretty, &paths)
            }
            _ => reply::failure(&Status::no_such_resource(), None),
        }
    }

    async fn resource(
        &self,
        verb: &str,
        path: &Resource,
        body: Incoming,
        upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Stop> {
        let endpoint = self.endpoint(path)?;
        if let Some(sub) = endpoint.subresource
            && matches!(sub.action, Action::Node)
        {
            return Ok(self.node(endpoint, sub, body, upgrade).await?);
        }
        if endpoint.subresource.is_some_and(|sub| matches!(sub.action, Action::Proxy)) {
            return Ok(self.proxy(endpoint, body, upgrade).await?);
        }
        if verb == "watch" {
            return self.watch(endpoint).await;
        }
        let answer = async {
            match (verb, endpoint.subresource) {
                ("get", None) => self.get(endpoint).await,
                ("get", Some(sub)) => self.get_subresource(endpoint, sub).await,
                ("list", None) => self.list(endpoint).await,
                ("create", None) => self.create(endpoint, body).await,
                ("create", Some(sub)) => self.act(endpoint, sub, body).await,
                ("update" | "patch", _) => self.write(endpoint, verb, body).await,
                ("delete", None) => self.delete(endpoint, body).await,
                ("deletecollection", None) => self.delete_collection(endpoint, body).await,
                _ => Err(not_allowed(endpoint, verb).into()),
            }
        };
        let timeout = self.query.get("timeout").map(duration).transpose()?.unwrap_or(REQUEST_TIMEOUT);
        match tokio::time::timeout(timeout.min(REQUEST_TIMEOUT), answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::timeout("request did not complete within the allotted timeout").into()),
        }
    }

    /// Finds what the path names, and checks that it takes the verb.
    fn endpoint<'a>(&'a self, path: &'a Resource) -> Result<Endpoint<'a>, Status> {
        let catalog = &self.server.registry.catalog;
        let served = catalog.find(&path.group, &path.version, &path.resource).ok_or_else(Status::no_such_resource)?;
        let subresource = match path.subresource.as_str() {
            "" => None,
            name => Some(served.subresource(name).ok_or_else(Status::no_such_resource)?),
        };
        for (group, resource, text) in DEPRECATED {
            if path.group == group && path.resource == resource {
                self.warnings.add(text);
            }
        }
        let endpoint = Endpoint { served, subresource, path };
        let namespaced = !path.namespace.is_empty();
        let is_namespace = served.kind.names.resource.group.is_empty() && path.resource == "namespaces";
        if namespaced && !served.is_namespaced() && !is_namespace {
            return Err(Status::no_such_resource());
        }
        Ok(endpoint)
    }

    async fn get(&self, endpoint: Endpoint<'_>) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Get, "get")?;
        let accepted = self.accepted(Offer::Tables)?;
        let form = single(accepted.form)?;
        let include = self.include()?;
        let revision = self.revision()?;
        let object = self.server.registry.get(endpoint.place(), revision).await?;
        let bytes = self.server.registry.object_json(endpoint.served, &object, form, include);
        Ok(reply::json(StatusCode::OK, accepted.format, bytes))
    }

    async fn get_subresource(&self, endpoint: Endpoint<'_>, sub: &Subresource) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Get, "get")?;
        if !matches!(sub.action, Action::Scale) {
            return self.get(endpoint).await;
        }
        let accepted = self.accepted(Offer::Tables)?;
        let include = self.include()?;
        let object = self.server.registry.get(endpoint.place(), self.revision()?).await?;
        self.answer_scale(endpoint, StatusCode::OK, (accepted, include), &object)
    }

    async fn list(&self, endpoint: Endpoint<'_>) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::List, "list")?;
        let accepted = self.accepted(Offer::Tables)?;
        if let Form::Metadata(_) = accepted.form {
            let kind = endpoint.served.kind_name();
            let why = format!("you requested PartialObjectMetadata, but the requested object is a list (*{kind}List)");
            return Err(Status::not_acceptable(why).into());
        }
        let include = self.include()?;
        let when = When::parse(self.query, false)?;
        let selection = self.selection(endpoint)?;
        let registry = &self.server.registry;
        let listed = registry.list(&selection, &when).await?;
        let bytes = registry.list_json(endpoint.served, &listed, accepted.form, include);
        Ok(reply::large(&self.parts.headers, accepted.format, bytes))
    }

    async fn watch(&self, endpoint: Endpoint<'_>) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Watch, "watch")?;
        let accepted = self.accepted(Offer::Tables)?;
        if accepted.format == Format::Yaml {
            return Err(Status::not_acceptable(
                "only the following media types are accepted: application/json;stream=watch",
            )
            .into());
        }
        let include = self.include()?;
        let when = When::parse(self.query, true)?;
        let selection = self.selection(endpoint)?;
        let registry = &self.server.registry;
        let watch = match registry.watch(selection, &when).await {
            Ok(watch) => watch,
            // As upstream does: the watch begins, and ends with the reason.
            Err(status) if status.code == 410 => {
                let end = futures_util::stream::iter([vec![stream::failure(&status)]]);
                return Ok(reply::watch(Box::pin(end), None));
            }
            Err(status) => return Err(status.into()),
        };
        let timeout = match when.timeout_seconds {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => {
                let mut random = [0; 4];
                (registry.rng)(&mut random);
                MIN_WATCH + MIN_WATCH.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
            }
        };
        let sending = Sending { form: accepted.form, include, bookmarks: when.bookmarks, timeout };
        let server = self.server;
        let events =
            stream::stream(watch, registry.clone(), server.encodings.clone(), sending, server.shutdown.clone());
        Ok(reply::watch(events, self.parts.extensions.get::<Takeover>().cloned()))
    }

    fn revision(&self) -> Result<u64, Status> {
        match self.query.get("resourceVersion").unwrap_or_default() {
            "" => Ok(0),
            text => text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "invalid resource version {text:?}: it must be one that this server gave out"
                ))
            }),
        }
    }
}

/// Parses a duration as Go writes it, such as `32s` or `1m30s`; none at all is the longest.
fn duration(text: &str) -> Result<Duration, Status> {
    let bad = || {
        Status::bad_request(format!("invalid timeout specified in the request URL: {text:?} is not like 30s or 1m30s"))
    };
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        let seconds = match &rest[digits..unit] {
            "h" => number * 3600.0,
            "m" => number * 60.0,
            "s" => number,
            "ms" => number / 1e3,
            "us" | "\u{b5}s" => number / 1e6,
            "ns" => number / 1e9,
            _ => return Err(bad()),
        };
        total += Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
        rest = &rest[unit..];
    }
    Ok(if total.is_zero() { REQUEST_TIMEOUT } else { total })
}

fn json_paths(server: &Server) -> serde_json::Value {
    let mut paths: Vec<String> = server.discovery.paths().map(str::to_owned).collect();
    paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    if server.registry.tokens.issuer().is_some() {
        paths.extend([openid::CONFIGURATION, openid::KEYS].map(str::to_owned));
    }
    paths.sort();
    serde_json::json!({"paths": paths})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let check = |text: &str| duration(text).ok().map(|d| d.as_millis());
        assert_eq!(check("32s"), Some(32_000));
        assert_eq!(check("1m30.5s"), Some(90_500));
        assert_eq!(check("0"), Some(60_000));
        assert_eq!([check("5"), check("x"), check("-1s"), check("1e400s"), check("1d")], [None; 5]);
    }
}
