//! The kubelet's endpoint: logs, exec, attach and port-forwarding for the API server.
//!
//! Every request but `/healthz` is authorized by what it does, never by its HTTP method. The paths are upstream's
//! (`pkg/kubelet/server/server.go`).

mod channels;
mod fd;
mod log;
mod log_socket;
mod port_forward;
mod streams;
mod transport;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::Runtime;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::shared::{Known, Registry, Roots};

/// How long a client may take for its handshake and for its request's head.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The client's certificates, its own first; the TLS configuration has verified them.
    pub certificates: Vec<CertificateDer<'static>>,
    pub bearer_token: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Pods,
    Logs,
    Exec,
    Attach,
    PortForward,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nobody knows who asks: 401.
    Unauthenticated,
    /// It is known, and may not: 403.
    Forbidden,
}

/// Decides who may do what.
pub type Authorizer = Arc<dyn Fn(Caller, Action) -> BoxFuture<'static, Result<(), Denied>> + Send + Sync>;

/// The endpoint. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    pub registry: Registry,
    pub runtime: Runtime,
    pub roots: Roots,
    pub authorizer: Authorizer,
    pub cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Endpoint {
    pub fn new(
        registry: Registry,
        runtime: Runtime,
        roots: Roots,
        authorizer: Authorizer,
        cancel: CancellationToken,
    ) -> Self {
        Self { registry, runtime, roots, authorizer, cancel, tasks: TaskTracker::new() }
    }

    /// Serves `listener` over TLS until cancelled. Connections that run then are cut.
    ///
    /// The configuration should ask for client certificates and accept clients without: tokens are another way.
    pub async fn serve(self, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.cancel.cancelled() => break,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let (endpoint, acceptor) = (self.clone(), acceptor.clone());
                    self.tasks.spawn(async move { endpoint.accept(tcp, peer, acceptor).await });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others close theirs.
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(&self, tcp: tokio::net::TcpStream, peer: SocketAddr, acceptor: TlsAcceptor) {
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%peer, %error, "a connection stays with delays");
        }
        match tokio::time::timeout(PATIENCE, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
                self.serve_stream(stream, certificates).await;
            }
            Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => debug!(%peer, "TLS handshake took too long"),
        }
    }

    /// Serves one connection, however it came about.
    pub async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        certificates: Vec<CertificateDer<'static>>,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let caller = Caller { certificates: certificates.clone(), bearer_token: bearer(&request) };
            async move { Ok::<_, Infallible>(self.answer(caller, request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(%error, "connection ended");
            },
            () = self.cancel.cancelled() => {}
        }
    }

    async fn answer(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let action = match parts[..] {
            ["healthz"] => return text(StatusCode::OK, "ok"),
            ["pods"] => Action::Pods,
            ["containerLogs", ..] => Action::Logs,
            ["exec", ..] => Action::Exec,
            ["attach", ..] => Action::Attach,
            ["portForward", ..] => Action::PortForward,
            _ => return text(StatusCode::NOT_FOUND, "404 page not found"),
        };
        match (self.authorizer)(caller, action).await {
            Ok(()) => {}
            Err(Denied::Unauthenticated) => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Err(Denied::Forbidden) => {
                return text(StatusCode::FORBIDDEN, &format!("Forbidden ({action:?} on this node)"));
            }
        }
        match (action, &parts[1..]) {
            (Action::Pods, []) => self.pods(),
            (Action::Logs, [namespace, pod, container]) if request.method() == Method::GET => {
                match self.find(namespace, pod, container) {
                    Ok(known) => {
                        let log = log::serve(self, &known, container, request.uri().query().unwrap_or_default());
                        if log_socket::is_asked(&request) { log_socket::serve(self, request, log) } else { log }
                    }
                    Err(missing) => missing,
                }
            }
            // The uid that some clients name is of no use here: names are looked up.
            (Action::Exec | Action::Attach, [namespace, pod, container] | [namespace, pod, _, container]) => {
                match self.find(namespace, pod, container) {
                    Ok(known) => streams::serve(self, &known, container, action, request),
                    Err(missing) => missing,
                }
            }
            (Action::PortForward, [namespace, pod] | [namespace, pod, _]) => match self.find_pod(namespace, pod) {
                Ok(known) => port_forward::serve(self, &known, request),
                Err(missing) => missing,
            },
            (Action::PortForward, _) => text(StatusCode::BAD_REQUEST, "the path must name namespace and pod"),
            (Action::Logs, [_, _, _]) => text(StatusCode::METHOD_NOT_ALLOWED, "logs are read with GET"),
            _ => text(StatusCode::BAD_REQUEST, "the path must name namespace, pod and container"),
        }
    }

    fn pods(&self) -> Response<Body> {
        let items: Vec<serde_json::Value> = self
            .registry
            .all()
            .into_iter()
            .map(|known| {
                let mut pod = known.pod.as_ref().clone();
                pod.status = Some(known.status);
                json!(pod)
            })
            .collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        let mut response = text(StatusCode::OK, &list.to_string());
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    #[allow(clippy::result_large_err)] // The error is the answer.
    fn find_pod(&self, namespace: &str, pod: &str) -> Result<Known, Response<Body>> {
        let missing = || text(StatusCode::NOT_FOUND, &format!("pod {pod:?} does not exist"));
        self.registry.named(namespace, pod).ok_or_else(missing)
    }

    #[allow(clippy::result_large_err)] // The error is the answer.
    fn find(&self, namespace: &str, pod: &str, container: &str) -> Result<Known, Response<Body>> {
        let known = self.find_pod(namespace, pod)?;
        if known.container(container).is_none() {
            return Err(text(StatusCode::NOT_FOUND, &format!("container {container:?} not found in pod {pod:?}")));
        }
        Ok(known)
    }
}

fn bearer(request: &Request<Incoming>) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    Some(value.strip_prefix("Bearer ")?.trim().to_owned())
}

pub(crate) fn text(code: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The values of a query's parameters of one name, decoded.
pub(crate) fn values(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| decoded(key) == name).map(|(_, value)| decoded(value)).collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (hex, bytes[at]) {
            (Some(byte), _) => {
                out.push(byte);
                at += 2;
            }
            (None, b'+') => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = "command=sh&command=-c&command=echo+%22a%26b%22&input=1";
        assert_eq!(values(query, "command"), ["sh", "-c", "echo \"a&b\""]);
        assert_eq!(values(query, "tty"), Vec::<String>::new());
        assert_eq!(values("x=%zz%4", "x"), ["%zz%4"]);
    }
}
