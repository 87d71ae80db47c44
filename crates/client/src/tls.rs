//! The transport over TLS and HTTP/2, for components on other machines and for the command line.
//!
//! Calls and watches share one connection, with windows as large as Kubernetes' own. Follows client-go `rest/request.go` and
//! `tools/cache/reflector.go`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::chain::chain;
use api::key::GroupResource;
use api::object::{Change, Object};
use api::status::Status;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::request::{Known, Request, object, page};
use crate::{BoxFuture, Call, Listing, Scope, Transport, Watch, Watched};

/// Kubernetes' own frames and windows: the default 64 kB starves watches.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
const CONNECT: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(60);
/// A silent connection is asked for a sign of life this often, and given up when none comes in time.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);
/// How long the server keeps a watch open; then it is begun again where it stood.
const WATCH_SECONDS: u64 = 300;
/// The longest answer to a call, and the longest event: objects have at most 1.5 MB.
const MAX_ANSWER: usize = 64 << 20;
const MAX_EVENT: usize = 16 << 20;

/// Why a server cannot be reached as it is given.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0:?} is not https://ADDRESS:PORT")]
    Address(String),
    #[error("{0:?} is a host name; give the server's IP address")]
    Name(String),
    #[error("the token has characters that no token has")]
    Token,
    #[error("the {what} is not PEM of the right kind")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
}

/// By what the server knows who asks.
#[derive(Clone)]
pub enum Credentials {
    /// Both in PEM.
    Certificate {
        chain: String,
        key: String,
    },
    Token(String),
}

/// Trusts the authority in `authority` (PEM) alone, and shows a certificate if there is one.
///
/// # Errors
/// When something is not what it should be.
pub fn client_config(authority: &str, credentials: &Credentials) -> Result<ClientConfig, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authority's certificate", authority)? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    match credentials {
        Credentials::Token(_) => Ok(config.with_no_client_auth()),
        Credentials::Certificate { chain, key } => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
            let key = key.map_err(|source| Unusable::Pem { what: "client's key", source })?;
            Ok(config.with_client_auth_cert(certificates("client's certificate", chain)?, key)?)
        }
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
    all.map_err(|source| Unusable::Pem { what, source })
}

/// A connection to a server, as whoever the client certificate or the token names.
pub struct Tls {
    http: Http<Connector, Full<Bytes>>,
    authority: String,
    token: Option<HeaderValue>,
}

impl Tls {
    /// Connects to `server`, which is `https://ADDRESS:PORT`, with the certificates of `tls`; not before the first request.
    /// The server's certificate must be valid for that address.
    ///
    /// # Errors
    /// When the server is not given by address.
    pub fn new(server: &str, mut tls: ClientConfig, token: Option<&str>) -> Result<Arc<Self>, Unusable> {
        let address = parse(server)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let connector = Connector { tls: TlsConnector::from(Arc::new(tls)), address };
        let http = Http::builder(TokioExecutor::new())
            .http2_only(true)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        let token = token.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Unusable::Token)?;
            value.set_sensitive(true);
            Ok::<_, Unusable>(value)
        });
        Ok(Arc::new(Self { http, authority: address.to_string(), token: token.transpose()? }))
    }

    /// As [`Tls::new`], with the authority and the credentials as a kubeconfig holds them.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn with_credentials(server: &str, authority: &str, credentials: &Credentials) -> Result<Arc<Self>, Unusable> {
        let token = match credentials {
            Credentials::Token(token) => Some(token.as_str()),
            Credentials::Certificate { .. } => None,
        };
        Self::new(server, client_config(authority, credentials)?, token)
    }

    async fn send(&self, request: Request) -> Result<Response<Incoming>, Status> {
        let body = request.body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut built = http::Request::builder()
            .method(request.method)
            .uri(format!("https://{}{}", self.authority, request.target))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, request.content_type)
            .header(USER_AGENT, concat!("coracle/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            built = built.header(AUTHORIZATION, token);
        }
        let request = built.body(Full::new(body)).map_err(Status::bad_request)?;
        let response = timeout(CALL, self.http.request(request)).await;
        let response =
            response.map_err(|_| Status::timeout(format!("no answer from {} within {CALL:?}", self.authority)))?;
        let response = response.map_err(|error| {
            Status::unavailable(format_args!("could not reach {}: {}", self.authority, chain(&error)))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let body = read(response).await?;
        Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body);
            Status::unavailable(format_args!("the server answered {code}: {}", text.trim()))
        }))
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, Status> {
        let (mut objects, mut next) = (Vec::new(), None);
        loop {
            let request = Request::list(scope, next.as_deref());
            let page = page(&scope.resource, &read(self.send(request).await?).await?)?;
            objects.extend(page.listing.objects);
            next = page.next;
            if next.is_none() {
                return Ok(Listing { revision: page.listing.revision, objects });
            }
        }
    }
}

impl Transport for Arc<Tls> {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>> {
        Box::pin(async move {
            let of = call.resource.clone();
            let body = read(self.send(Request::new(call)).await?).await?;
            object(&of, serde_json::from_slice(&body).map_err(Status::internal)?)
        })
    }

    fn list_watch(&self, scope: Scope) -> BoxFuture<'_, Result<Watched, Status>> {
        Box::pin(async move {
            let listing = self.list(&scope).await?;
            let watch = Stream {
                transport: self.clone(),
                known: Known::new(&listing.objects),
                revision: listing.revision,
                of: scope.resource.clone(),
                scope,
                body: None,
                buffer: BytesMut::new(),
            };
            Ok((listing, Box::new(watch) as Box<dyn Watch>))
        })
    }
}

/// A watch that is connected when it is first asked, and again when the server ends it in good order.
struct Stream {
    transport: Arc<Tls>,
    scope: Scope,
    of: GroupResource,
    known: Known,
    revision: u64,
    body: Option<Incoming>,
    /// What has arrived of the next events.
    buffer: BytesMut,
}

impl Watch for Stream {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>> {
        Box::pin(async {
            loop {
                let (changes, moved) = self.drain()?;
                if moved {
                    return Ok(changes);
                }
                let Some(body) = &mut self.body else {
                    let request = Request::watch(&self.scope, self.revision, WATCH_SECONDS);
                    self.body = Some(self.transport.send(request).await?.into_body());
                    continue;
                };
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            self.buffer.extend_from_slice(&data);
                        }
                    }
                    Some(Err(error)) => {
                        self.body = None;
                        return Err(Status::unavailable(format_args!(
                            "the watch of {} broke: {}",
                            self.of,
                            chain(&error)
                        )));
                    }
                    None => {
                        self.body = None;
                        self.buffer.clear();
                    }
                }
                if self.buffer.len() > MAX_EVENT {
                    return Err(Status::internal(format_args!("an event of {} exceeds {MAX_EVENT} bytes", self.of)));
                }
            }
        })
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}

impl Stream {
    /// Reads the whole events in the buffer; the flag says whether there were any.
    fn drain(&mut self) -> Result<(Vec<Change>, bool), Status> {
        let (mut changes, mut moved) = (Vec::new(), false);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            if line.is_empty() {
                continue;
            }
            let (revision, change) = self.known.read(&self.of, &line)?;
            self.revision = self.revision.max(revision);
            changes.extend(change);
            moved = true;
        }
        Ok((changes, moved))
    }
}

async fn read(response: Response<Incoming>) -> Result<Bytes, Status> {
    let body = timeout(CALL, Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
    let body = body.map_err(|_| Status::timeout(format!("the answer did not end within {CALL:?}")))?;
    Ok(body.map_err(|error| Status::unavailable(format_args!("the answer broke: {}", chain(&*error))))?.to_bytes())
}

fn parse(server: &str) -> Result<SocketAddr, Unusable> {
    let malformed = || Unusable::Address(server.to_owned());
    let rest = server.strip_prefix("https://").ok_or_else(malformed)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if let Ok(address) = authority.parse() {
        return Ok(address);
    }
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
    let port = port.parse().map_err(|_| malformed())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port)),
        Err(_) if host == "localhost" => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        Err(_) if host.is_empty() || host.contains('/') => Err(malformed()),
        Err(_) => Err(Unusable::Name(host.to_owned())),
    }
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    address: SocketAddr,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { tls, address } = self.clone();
        Box::pin(async move {
            let connected = timeout(CONNECT, async {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                tls.connect(ServerName::IpAddress(address.ip().into()), tcp).await
            });
            let stream = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(Secured(TokioIo::new(stream)))
        })
    }
}

/// A TLS stream that tells hyper that it speaks HTTP/2.
struct Secured(TokioIo<TlsStream<TcpStream>>);

impl Connection for Secured {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl Read for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl Write for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_given_by_address() {
        let address =
            |server: &str| parse(server).map(|address| address.to_string()).map_err(|error| error.to_string());
        assert_eq!(address("https://10.0.0.1:6443").as_deref(), Ok("10.0.0.1:6443"));
        assert_eq!(address("https://[fd00::1]:6443/").as_deref(), Ok("[fd00::1]:6443"));
        assert_eq!(address("https://10.0.0.1").as_deref(), Ok("10.0.0.1:443"));
        assert_eq!(address("https://localhost:6443").as_deref(), Ok("127.0.0.1:6443"));
        let name = r#""rack" is a host name; give the server's IP address"#;
        assert_eq!(address("https://rack:6443"), Err(name.to_owned()));
        for bad in ["http://10.0.0.1:6443", "https://10.0.0.1:6443/x", "https://", "https://10.0.0.1:port"] {
            assert_eq!(address(bad), Err(format!("{bad:?} is not https://ADDRESS:PORT")));
        }
    }
}
