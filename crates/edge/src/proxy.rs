//! One request: from the rule that it matches to the endpoint that answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderValue, LOCATION, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep_until};
use wire::edge::{Options, Target};

use crate::access_log::{Attempt, Line};
use crate::answer_body::AnswerBody;
use crate::headers::{self, Origin};
use crate::live::{Balanced, Live};
use crate::path;
use crate::pool::{self, ConnectError, Connection, Lease};
use crate::progress::{Progress, Stage};
use crate::request_body::{RequestBody, linger};
use crate::shared::Shared;
use crate::tunnel;

/// How many endpoints one request is tried with. Source: ingress-nginx `proxy-next-upstream-tries`.
const TRIES: usize = 3;
/// How long a client may pause within a body. Source: nginx `client_body_timeout`.
const CLIENT_BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Source: ingress-nginx `hsts-max-age`, `hsts-include-subdomains`.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000; includeSubDomains");

/// The connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub port: u16,
    pub tls: bool,
}

impl Peer {
    fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Answers one request.
pub async fn serve(shared: Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<AnswerBody> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let live = shared.live();
    let line = line(&shared, peer, &request);
    let Some(host) = headers::host(&request).map(str::to_owned) else { return plain(StatusCode::BAD_REQUEST, line) };
    let Some(path) = path::normalized(request.uri().path()) else { return plain(StatusCode::BAD_REQUEST, line) };
    if request.method() == Method::CONNECT {
        return plain(StatusCode::METHOD_NOT_ALLOWED, line);
    }
    let name = headers::host_name(&host);
    let exchange = Exchange { shared: &shared, live: &live, peer, host: &host, name: &name };
    let mut response = exchange.answer(request, &path, line).await;
    if peer.tls && live.certificates.named(&name).is_some() {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HSTS);
    }
    response
}

struct Exchange<'a> {
    shared: &'a Arc<Shared>,
    live: &'a Arc<Live>,
    peer: Peer,
    host: &'a str,
    name: &'a str,
}

/// Why an endpoint gave no answer.
enum Failure {
    /// To be answered with this status.
    Final(StatusCode),
    /// Nothing came back, and the request can be sent again.
    Again(Box<Request<RequestBody>>),
}

impl Exchange<'_> {
    async fn answer(&self, request: Request<Incoming>, path: &str, mut line: Box<Line>) -> Response<AnswerBody> {
        let Some(route) = self.live.route(self.name, path) else {
            line.upstream = Some("upstream-default-backend".to_owned());
            return refuse(self.shared, StatusCode::NOT_FOUND, request, line);
        };
        if route.options.redirect_to_https && !self.peer.tls {
            return self.redirect(&request, line);
        }
        let balanced = match &route.target {
            Target::Status(status) => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                return refuse(self.shared, status, request, line);
            }
            target @ Target::Upstream(_) => self.live.upstream(target),
        };
        let Some(balanced) = balanced else {
            return refuse(self.shared, StatusCode::SERVICE_UNAVAILABLE, request, line);
        };
        line.upstream = Some(balanced.upstream.name.clone());
        if balanced.upstream.endpoints.is_empty() {
            return refuse(self.shared, StatusCode::SERVICE_UNAVAILABLE, request, line);
        }
        let limit = route.options.body_limit;
        if limit > 0 && request.body().size_hint().lower() > limit {
            return refuse(self.shared, StatusCode::PAYLOAD_TOO_LARGE, request, line);
        }
        self.forward(request, balanced, &route.options, line).await
    }

    fn redirect(&self, request: &Request<Incoming>, line: Box<Line>) -> Response<AnswerBody> {
        let host = self.host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let host = host.map_or(self.host, |(host, _)| host);
        let port = match self.shared.https_port.load(Ordering::Relaxed) {
            0 | 443 => String::new(),
            port => format!(":{port}"),
        };
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let mut response = plain(StatusCode::PERMANENT_REDIRECT, line);
        if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{port}{target}")) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        balanced: &Balanced,
        options: &Options,
        mut line: Box<Line>,
    ) -> Response<AnswerBody> {
        let lingering = lingers(&request).then(|| self.shared.tasks.clone());
        let upgrade = headers::wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let origin = Origin {
            client: self.peer.address.ip().to_canonical(),
            scheme: self.peer.scheme(),
            port: self.peer.port,
            host: self.host,
            request_id: &line.request_id,
        };
        headers::to_application(&mut parts.headers, &origin, upgrade.is_some());
        parts.uri = headers::origin_form(&parts.uri);
        parts.version = Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        let (body, progress) = RequestBody::new(body, options.body_limit, lingering);
        line.body = Some(progress.clone());
        let mut request = Request::from_parts(parts, body);
        let now = Instant::now();
        let endpoints = self.shared.health.order(&balanced.upstream.endpoints, balanced.next_turn(), now);
        let mut status = StatusCode::BAD_GATEWAY;
        let tries = endpoints.iter().cycle().take(endpoints.len().clamp(2, TRIES));
        let mut fresh = false;
        for endpoint in tries {
            let target = pool::Target { address: *endpoint, tls: options.upstream_tls };
            let started = Instant::now();
            let connection = match self.connection(target, options, fresh).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.shared.health.failed(*endpoint, Instant::now());
                    status = match error {
                        ConnectError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                        ConnectError::Io(_) | ConnectError::Handshake(_) => StatusCode::BAD_GATEWAY,
                    };
                    line.attempts.push(Attempt {
                        endpoint: *endpoint,
                        status: status.as_u16(),
                        time: started.elapsed(),
                    });
                    continue;
                }
            };
            self.shared.health.succeeded(*endpoint);
            progress.restart();
            match exchange(connection, request, &progress, options).await {
                Ok((connection, response)) => {
                    let (endpoint, time) = (*endpoint, started.elapsed());
                    line.attempts.push(Attempt { endpoint, status: response.status().as_u16(), time });
                    let lease = Lease::new(connection, progress.clone(), self.shared.pool.clone());
                    return self.pass_on(response, upgrade, lease, options, line);
                }
                Err(Failure::Again(again)) => {
                    request = *again;
                    // The endpoint closed an idle connection at this moment; it may be closing the others.
                    fresh = true;
                    status = StatusCode::BAD_GATEWAY;
                    line.attempts.push(Attempt { endpoint: *endpoint, status: 502, time: started.elapsed() });
                }
                Err(Failure::Final(last)) => {
                    line.attempts.push(Attempt { endpoint: *endpoint, status: last.as_u16(), time: started.elapsed() });
                    return plain(last, line);
                }
            }
        }
        plain(status, line)
    }

    async fn connection(
        &self,
        target: pool::Target,
        options: &Options,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        if !fresh && let Some(idle) = self.shared.pool.take(target) {
            return Ok(idle);
        }
        self.shared.pool.connect(target, Duration::from_millis(options.connect_timeout_ms)).await
    }

    fn pass_on(
        &self,
        mut response: Response<Incoming>,
        upgrade: Option<OnUpgrade>,
        lease: Lease,
        options: &Options,
        mut line: Box<Line>,
    ) -> Response<AnswerBody> {
        let read_timeout = Duration::from_millis(options.read_timeout_ms);
        line.status = response.status().as_u16();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade else { return plain(StatusCode::BAD_GATEWAY, line) };
            let application = hyper::upgrade::on(&mut response);
            headers::to_client(response.headers_mut(), true);
            self.shared.tasks.spawn(async move {
                let _lease = lease;
                if let (Ok(client), Ok(application)) = tokio::join!(client, application) {
                    // Both ends know why it ended; what remains is the log line.
                    let _ended = tunnel::run(client, application, read_timeout, &mut line.sent).await;
                }
            });
            return response.map(|_| AnswerBody::own("", None));
        }
        headers::to_client(response.headers_mut(), false);
        let (mut parts, body) = response.into_parts();
        parts.version = Version::default();
        parts.extensions = http::Extensions::new();
        Response::from_parts(parts, AnswerBody::application(body, lease, read_timeout, line))
    }
}

/// Sends a request and waits for the head of its answer, as long as there is progress.
async fn exchange(
    mut connection: Connection,
    request: Request<RequestBody>,
    progress: &Arc<Progress>,
    options: &Options,
) -> Result<(Connection, Response<Incoming>), Failure> {
    let spare = repeatable(&request).then(|| spare(&request));
    let outcome = {
        let sending = connection.sender.try_send_request(request);
        tokio::pin!(sending);
        loop {
            let patience = match progress.stage() {
                Stage::Sending => Duration::from_millis(options.send_timeout_ms),
                Stage::Receiving => CLIENT_BODY_TIMEOUT,
                Stage::Sent => Duration::from_millis(options.read_timeout_ms),
            };
            let deadline = progress.last_step() + patience;
            tokio::select! {
                outcome = &mut sending => break outcome,
                // Another stage has another time-out.
                () = progress.turned() => continue,
                () = sleep_until(deadline) => {}
            }
            if progress.last_step() + patience <= Instant::now() {
                let status = match progress.stage() {
                    Stage::Receiving => StatusCode::REQUEST_TIMEOUT,
                    Stage::Sending | Stage::Sent => StatusCode::GATEWAY_TIMEOUT,
                };
                return Err(Failure::Final(status));
            }
        }
    };
    match outcome {
        Ok(response) => Ok((connection, response)),
        Err(mut error) => {
            if let Some(unsent) = error.take_message() {
                return Err(Failure::Again(Box::new(unsent)));
            }
            if progress.is_too_long() {
                return Err(Failure::Final(StatusCode::PAYLOAD_TOO_LARGE));
            }
            if progress.is_client_gone() {
                return Err(Failure::Final(StatusCode::BAD_REQUEST));
            }
            match spare {
                Some(parts) => {
                    let body = RequestBody::none(progress.clone());
                    Err(Failure::Again(Box::new(Request::from_parts(parts, body))))
                }
                None => Err(Failure::Final(StatusCode::BAD_GATEWAY)),
            }
        }
    }
}

/// Whether a request may be sent twice. Source: nginx `proxy_next_upstream`, which excludes `non_idempotent` ones.
fn repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_end_stream() && request.method().is_idempotent()
}

fn spare(request: &Request<RequestBody>) -> Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    parts
}

/// Answers without the application.
fn refuse(shared: &Shared, status: StatusCode, request: Request<Incoming>, line: Box<Line>) -> Response<AnswerBody> {
    if lingers(&request) {
        linger(request.into_body(), &shared.tasks);
    }
    plain(status, line)
}

/// Whether a client may be sending a body whatever it is answered.
fn lingers(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && !request.body().is_end_stream()
        && !request.headers().contains_key(http::header::EXPECT)
}

/// An answer of the edge's own.
fn plain(status: StatusCode, mut line: Box<Line>) -> Response<AnswerBody> {
    line.status = status.as_u16();
    let text = match status {
        StatusCode::NOT_FOUND => "default backend - 404".to_owned(),
        other => format!("{other}\n"),
    };
    let length = text.len();
    let mut response = Response::new(AnswerBody::own(text, Some(line)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn line(shared: &Shared, peer: Peer, request: &Request<Incoming>) -> Box<Line> {
    let text =
        |name| request.headers().get(name).map(|value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into());
    let target = request.uri().path_and_query().map_or("*", |target| target.as_str());
    let given = request.headers().get(headers::REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let fields: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let head = format!("{} {target} {:?}", request.method(), request.version());
    Box::new(Line {
        log: shared.log.clone(),
        client: peer.address.ip().to_canonical(),
        status: 0,
        sent: 0,
        referer: text(http::header::REFERER),
        user_agent: text(http::header::USER_AGENT),
        head_length: (head.len() + fields + 4) as u64,
        body: None,
        request: head,
        started: Instant::now(),
        upstream: None,
        attempts: Vec::new(),
        request_id: given.map_or_else(random_id, str::to_owned),
    })
}

/// 32 hexadecimal digits, as nginx's `$request_id`.
fn random_id() -> String {
    let mut bytes = [0; 16];
    // Before the kernel has random numbers there is no TLS either; an id of zeros harms nobody.
    let _best_effort = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:032x}", u128::from_be_bytes(bytes))
}
