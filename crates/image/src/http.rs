//! HTTP to registries: names resolved without the host's NSS, TLS by rustls, a time-out on every wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::registries::Tls;

/// For name, connection and handshake together.
const CONNECT: Duration = Duration::from_secs(15);
/// For one address of several.
const CONNECT_ONE: Duration = Duration::from_secs(5);
/// Until the answer's head is there.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two pieces of a body; the kubelet's `image-pull-progress-deadline` had the same.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

type HyperClient = Client<Connector, Full<Bytes>>;

/// One pool of connections for each way to speak TLS.
#[derive(Default)]
pub(crate) struct Http {
    clients: Mutex<BTreeMap<Tls, HyperClient>>,
}

impl Http {
    /// Sends one request and returns when the answer's head has come; redirects are the caller's matter.
    ///
    /// # Errors
    /// A sentence for users; the request may or may not have arrived.
    pub async fn send(&self, tls: &Tls, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let client = self.client(tls);
        match timeout(CONNECT + ANSWER, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    fn client(&self, tls: &Tls) -> HyperClient {
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(client) = clients.get(tls) {
            return client.clone();
        }
        let connector = Connector { tls: Arc::new(LazyTls { settings: tls.clone(), made: OnceLock::new() }) };
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector);
        clients.insert(tls.clone(), client.clone());
        client
    }
}

/// An error with its causes, the outermost ones of the libraries left out when they say nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.dedup();
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

fn client_config(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(wire::tls::Unverified(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &tls.ca_file {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        builder.with_root_certificates(roots)
    };
    match (&tls.cert_file, &tls.key_file) {
        (Some(chain), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            builder.with_client_auth_cert(certificates(chain)?, private).map_err(|error| error.to_string())
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[derive(Clone)]
struct Connector {
    tls: Arc<LazyTls>,
}

/// The host's certificates are read when the first https endpoint is spoken to: plain mirrors need none.
struct LazyTls {
    settings: Tls,
    made: OnceLock<Result<TlsConnector, String>>,
}

impl LazyTls {
    fn connector(&self) -> io::Result<TlsConnector> {
        let make = || client_config(&self.settings).map(|config| TlsConnector::from(Arc::new(config)));
        self.made.get_or_init(make).clone().map_err(io::Error::other)
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = Arc::clone(&self.tls);
        Box::pin(async move {
            let timed_out = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"));
            timeout(CONNECT, connect(tls, uri)).await.unwrap_or_else(timed_out)
        })
    }
}

async fn connect(tls: Arc<LazyTls>, uri: Uri) -> io::Result<Stream> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let mut last = io::Error::other(format!("lookup {host}: no such host"));
    for address in resolve(host).await? {
        let address = SocketAddr::new(address, port);
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("dial tcp {address}: {error}"));
        match timeout(CONNECT_ONE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return match https {
                    false => Ok(Stream(TokioIo::new(Box::new(stream)))),
                    true => {
                        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                        let stream = tls.connector()?.connect(name, stream).await;
                        let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("tls: {error}")))?;
                        Ok(Stream(TokioIo::new(Box::new(stream))))
                    }
                };
            }
            Ok(Err(error)) => last = failed(error),
            Err(_) => last = failed(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")),
        }
    }
    Err(last)
}

/// Reads /etc/hosts and /etc/resolv.conf anew: pulls are rare, and networks change.
async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if host == "localhost" {
        return Ok(vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]);
    }
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("dial tcp: lookup {host}: {error}"));
    let resolver = hickory_resolver::Resolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| failed(&error))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| match error.is_no_records_found() {
        true => failed(&"no such host"),
        false => failed(&error),
    })?;
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = found.iter().partition(IpAddr::is_ipv6);
    // One of each family first: where one of them goes nowhere, the other is tried next.
    let mut addresses = Vec::with_capacity(v4.len() + v6.len());
    for at in 0..v4.len().max(v6.len()) {
        addresses.extend(v4.get(at));
        addresses.extend(v6.get(at));
    }
    Ok(addresses)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection with TLS or without.
struct Stream(TokioIo<Box<dyn Io>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
