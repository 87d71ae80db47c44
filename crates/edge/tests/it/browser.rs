//! Clients of the edge.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bed::PATIENCE;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub fn request(method: &str, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", host).body(Full::new(body.into())).unwrap()
}

/// One GET over plain HTTP/1.1.
pub async fn get(edge: SocketAddr, host: &str, path: &str) -> Answer {
    send(edge, request("GET", host, path, "")).await
}

/// One request over plain HTTP/1.1 on a connection of its own.
pub async fn send<B>(edge: SocketAddr, request: Request<B>) -> Answer
where
    B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    try_send(edge, request).await.unwrap()
}

pub async fn try_send<B>(
    edge: SocketAddr,
    request: Request<B>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let stream = TcpStream::connect(edge).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = timeout(PATIENCE, async { read(sender.send_request(request).await?).await }).await?;
    connection.abort();
    answer
}

/// One request over TLS with the protocol that is agreed on.
pub async fn send_tls(stream: TlsStream<TcpStream>, mut request: Request<Full<Bytes>>) -> Answer {
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let host = request.headers_mut().remove("host").unwrap();
        *request.uri_mut() = format!("https://{}{}", host.to_str().unwrap(), request.uri()).parse().unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        timeout(PATIENCE, async { read(sender.send_request(request).await?).await }).await.unwrap().unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        timeout(PATIENCE, async { read(sender.send_request(request).await?).await }).await.unwrap().unwrap()
    }
}

async fn read(
    response: http::Response<hyper::body::Incoming>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec())? })
}

/// A TLS connection that trusts `authorities` alone.
pub async fn tls(
    edge: SocketAddr,
    name: &str,
    authorities: &[CertificateDer<'static>],
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(edge).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

/// Sends these very bytes, and returns all that comes back until the edge closes.
pub async fn raw(edge: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    String::from_utf8_lossy(&answer).into_owned()
}
