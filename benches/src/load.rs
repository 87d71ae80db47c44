//! The load client, one for both sides and on one thread: HTTP/1.1 over TLS 1.3 with one cipher suite, a request at a time on each of
//! its connections. It is not measured itself.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::cell::Cell;
use testkit::netns::within;
use testkit::web::Kubeconfig;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An answer that takes longer is an error: no bench may hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// Told to both sides, which write it down as the manager of fields.
const USER_AGENT: &str = "bench";

/// A user of one side's API.
pub struct Client {
    netns: PathBuf,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    runtime: tokio::runtime::Runtime,
}

/// A request to come.
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub body: Bytes,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: Bytes::new() }
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, path: path.into(), body: body.into() }
    }
}

/// How a load went. Every request was answered with 2xx.
#[derive(Debug)]
pub struct Outcome {
    pub elapsed: Duration,
    pub latencies: Vec<Duration>,
    /// Of the bodies of all answers.
    pub bytes: u64,
}

/// What was agreed on with the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub protocol: String,
    pub cipher: String,
    /// Whether the server's key is on P-256, which costs a fraction of RSA.
    pub p256: bool,
}

type Sender = SendRequest<Full<Bytes>>;

impl Client {
    /// A client from the namespace `netns` with the certificate of a kubeconfig; without one when `anonymous`.
    ///
    /// # Errors
    /// When the text is no kubeconfig with a certificate.
    pub fn new(netns: PathBuf, kubeconfig: &str, anonymous: bool) -> Result<Self> {
        let Kubeconfig { address, authority, certificate, key } = Kubeconfig::parse(kubeconfig)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let one_suite = CryptoProvider {
            cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..ring::default_provider()
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(one_suite))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let tls = if anonymous {
            builder.with_no_client_auth()
        } else {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { netns, address, tls: Arc::new(tls), runtime })
    }

    /// One request; the status and the answer, whatever they are.
    ///
    /// # Errors
    /// When the connection fails or the answer is no JSON.
    pub fn ask(&self, ask: Ask) -> Result<(u16, Value)> {
        let (status, text) = self.text(ask)?;
        Ok((status, serde_json::from_str(&text).with_context(|| format!("answered {status} without JSON: {text}"))?))
    }

    /// One request; the status and the text of the answer.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn text(&self, ask: Ask) -> Result<(u16, String)> {
        self.block(async {
            let mut sender = self.connections(1).await?.pop().context("one connection was asked for")?;
            let answer = self.send(&mut sender, ask).await?;
            let status = answer.status().as_u16();
            let whole = tokio::time::timeout(PATIENCE, answer.into_body().collect());
            let body = whole.await.context("reading an answer")??.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        })
    }

    /// One request whose answer must be a success.
    ///
    /// # Errors
    /// As [`Client::ask`]; the server's message when it refuses.
    pub fn must(&self, ask: Ask) -> Result<Value> {
        let what = format!("{} {}", ask.method, ask.path);
        let (status, value) = self.ask(ask)?;
        ensure!((200..300).contains(&status), "{what} is answered with {status}: {}", value["message"]);
        Ok(value)
    }

    /// Makes `total` requests over `width` connections that are open before the clock starts.
    ///
    /// # Errors
    /// When a connection fails or an answer is not 2xx.
    pub fn load(&self, width: usize, total: usize, ask: impl Fn(usize) -> Ask + 'static) -> Result<Outcome> {
        self.block(self.loading(width, total, ask))
    }

    /// As [`Client::load`], beside other things that the client does.
    ///
    /// # Errors
    /// As [`Client::load`].
    pub async fn loading(&self, width: usize, total: usize, ask: impl Fn(usize) -> Ask + 'static) -> Result<Outcome> {
        let connections = self.connections(width).await?;
        let (next, ask) = (Rc::new(Cell::new(0)), Rc::new(ask));
        let began = Instant::now();
        let mut workers = Vec::new();
        for mut sender in connections {
            let (next, ask, client) = (next.clone(), ask.clone(), self.address);
            workers.push(tokio::task::spawn_local(async move {
                let (mut latencies, mut bytes) = (Vec::new(), 0);
                while next.get() < total {
                    let n = next.replace(next.get() + 1);
                    let began = Instant::now();
                    bytes += whole(&mut sender, client, ask(n)).await?;
                    latencies.push(began.elapsed());
                }
                anyhow::Ok((latencies, bytes))
            }));
        }
        let mut outcome = Outcome { elapsed: Duration::ZERO, latencies: Vec::new(), bytes: 0 };
        for worker in workers {
            let (latencies, bytes) = worker.await??;
            outcome.latencies.extend(latencies);
            outcome.bytes += bytes;
        }
        outcome.elapsed = began.elapsed();
        Ok(outcome)
    }

    /// Opens `watchers` watches of `path`, each on a connection of its own, then makes `total` requests over `width` others, and waits
    /// until each watcher was told of every one: how long that took from the first request on.
    ///
    /// # Errors
    /// When a watch ends, or is told too much.
    pub fn fan_out(
        &self,
        watchers: usize,
        path: &str,
        width: usize,
        total: usize,
        ask: impl Fn(usize) -> Ask + 'static,
    ) -> Result<Duration> {
        self.block(async {
            let mut watching = Vec::new();
            for mut sender in self.connections(watchers).await? {
                let answer = self.send(&mut sender, Ask::get(path)).await?;
                ensure!(answer.status().is_success(), "a watch is answered with {}", answer.status());
                watching.push(tokio::task::spawn_local(async move {
                    // The connection lives as long as its sender.
                    let _sender = sender;
                    events(answer.into_body(), total).await
                }));
            }
            let began = Instant::now();
            let connections = self.connections(width).await?;
            let (next, ask) = (Rc::new(Cell::new(0)), Rc::new(ask));
            let mut writers = Vec::new();
            for mut sender in connections {
                let (next, ask, address) = (next.clone(), ask.clone(), self.address);
                writers.push(tokio::task::spawn_local(async move {
                    while next.get() < total {
                        let n = next.replace(next.get() + 1);
                        whole(&mut sender, address, ask(n)).await?;
                    }
                    anyhow::Ok(())
                }));
            }
            for task in writers.into_iter().chain(watching) {
                tokio::time::timeout(PATIENCE, task).await.context("waiting for the watches")???;
            }
            Ok(began.elapsed())
        })
    }

    /// Holds `watchers` idle watches of `path` while `measure` runs.
    ///
    /// # Errors
    /// When a watch cannot be opened, or what `measure` returns.
    pub fn holding<T>(&self, watchers: usize, path: &str, measure: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        self.block(async {
            let mut held = Vec::new();
            for mut sender in self.connections(watchers).await? {
                let answer = self.send(&mut sender, Ask::get(path)).await?;
                ensure!(answer.status().is_success(), "a watch is answered with {}", answer.status());
                held.push((sender, answer));
            }
            measure().await
        })
    }

    /// What TLS has agreed on.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn agreed(&self) -> Result<Agreed> {
        self.block(async {
            let stream = self.secure(self.plain(1)?.remove(0)).await?;
            let tls = stream.get_ref().1;
            let protocol = tls.protocol_version().context("no protocol version")?;
            let cipher = tls.negotiated_cipher_suite().context("no cipher suite")?.suite();
            Ok(Agreed {
                protocol: format!("{protocol:?}"),
                cipher: format!("{cipher:?}"),
                p256: tls.peer_certificates().and_then(<[_]>::first).is_some_and(|leaf| is_p256(leaf)),
            })
        })
    }

    fn block<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        LocalSet::new().block_on(&self.runtime, work)
    }

    fn plain(&self, count: usize) -> Result<Vec<TcpStream>> {
        within(&self.netns, || {
            let connect = |_| {
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)
                    .with_context(|| format!("could not connect to {}", self.address))?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            };
            (0..count).map(connect).collect()
        })
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<tokio::net::TcpStream>> {
        let name = ServerName::from(self.address.ip());
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let connecting = TlsConnector::from(self.tls.clone()).connect(name, stream);
        Ok(tokio::time::timeout(PATIENCE, connecting).await.context("shaking hands")??)
    }

    /// Connections that are ready for requests.
    async fn connections(&self, count: usize) -> Result<Vec<Sender>> {
        let mut senders = Vec::new();
        for stream in self.plain(count)? {
            let (sender, connection) = handshake(TokioIo::new(self.secure(stream).await?)).await?;
            // Ends with its sender; what went wrong is the sender's error too.
            tokio::task::spawn_local(connection);
            senders.push(sender);
        }
        Ok(senders)
    }

    async fn send(&self, sender: &mut Sender, ask: Ask) -> Result<Response<Incoming>> {
        send(sender, self.address, ask).await
    }
}

/// Whether a certificate names the curve. Source: RFC 5480, section 2.1.1.1.
fn is_p256(leaf: &[u8]) -> bool {
    const PRIME256V1: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    leaf.windows(PRIME256V1.len()).any(|window| window == PRIME256V1)
}

async fn send(sender: &mut Sender, address: SocketAddr, ask: Ask) -> Result<Response<Incoming>> {
    let request = Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header("host", address.to_string())
        .header("user-agent", USER_AGENT)
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(ask.body))?;
    tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .context("waiting for an answer")?
        .map_err(Into::into)
}

/// Sends and reads the whole answer, which must be a success; returns the size of its body.
async fn whole(sender: &mut Sender, address: SocketAddr, ask: Ask) -> Result<u64> {
    let what = format!("{} {}", ask.method, ask.path);
    let answer = send(sender, address, ask).await.with_context(|| what.clone())?;
    let status = answer.status();
    let mut body = answer.into_body();
    if !status.is_success() {
        let text = body.collect().await?.to_bytes();
        bail!("{what} is answered with {status}: {}", String::from_utf8_lossy(&text));
    }
    let mut bytes = 0;
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.with_context(|| what.clone())? {
        bytes += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    Ok(bytes)
}

/// Reads a watch until it has told of `expected` changes: one JSON document in a line each.
async fn events(mut body: Incoming, expected: usize) -> Result<()> {
    let mut seen = 0;
    while seen < expected {
        let frame = body.frame().await.context("a watch ended")??;
        let data = frame.data_ref().map_or(&[][..], |data| &data[..]);
        seen += data.iter().filter(|byte| **byte == b'\n').count();
    }
    ensure!(seen == expected, "a watch told of {seen} changes instead of {expected}");
    Ok(())
}
