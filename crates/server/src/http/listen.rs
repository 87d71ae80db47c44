//! Connections: TLS or plain, HTTP/1.1 or HTTP/2, with every limit explicit.
//!
//! Source: apiserver `pkg/server/secure_serving.go`; the limits against resets are for CVE-2023-44487 and its kin.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::identity::PeerCertificates;
use crate::server::Server;

/// Kubernetes' own frames and windows: the default 64 kB starves watches.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
const MAX_FRAME: u32 = 256 * 1024;
/// What a client that does not read may hold back in a stream.
const SEND_BUFFER: usize = 128 * 1024;
/// Informers hold a stream each on one connection.
const STREAMS: u32 = 1000;
/// Streams that a peer has reset before they were accepted, and errors of its own making, that end the connection.
const RESETS: usize = 100;
const MAX_HEADERS: u32 = 64 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's head, and for the silence between two requests: upstream's time for the latter.
const HEADERS: Duration = Duration::from_secs(90);
const KEEPALIVE: Duration = Duration::from_secs(15);
const PING: Duration = Duration::from_secs(30);
/// Connections served at once; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// How long connections may finish what they do when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

impl Server {
    /// Serves until `cancel`, then lets connections finish for a moment. Plain HTTP without `tls`; with it, its ALPN list
    /// decides between HTTP/2 and HTTP/1.1. Watches end with the server's own `shutdown`.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        let acceptor = tls.map(TlsAcceptor::from);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                (slot, listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                next = next => next,
                () = cancel.cancelled() => break,
            };
            // Reaps what has ended, so that the set does not grow.
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => {
                    let (server, acceptor, cancel) = (self.clone(), acceptor.clone(), cancel.clone());
                    connections.spawn(async move {
                        if let Err(error) = server.connection(stream, peer, acceptor, cancel).await {
                            debug!(%peer, %error, "connection ended");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: it passes when connections close.
                    warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            connections.shutdown().await;
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        cancel: CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        // A peer that vanished ends its watches and tunnels too. Go's intervals.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
        match acceptor {
            None => self.serve_stream(stream, peer, PeerCertificates::from([]), cancel).await,
            Some(acceptor) => {
                let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
                let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let certificates = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
                self.serve_stream(stream, peer, certificates, cancel).await
            }
        }
    }

    /// Serves one connection that is established already.
    ///
    /// # Errors
    /// When the peer breaks the protocol or the connection.
    pub async fn serve_stream(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: SocketAddr,
        certificates: PeerCertificates,
        cancel: CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let service = service_fn(move |request| {
            let (server, certificates) = (self.clone(), certificates.clone());
            async move { Ok::<_, Infallible>(server.handle(request, peer, certificates).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADERS as usize * 2);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(RESETS)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING / 2);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = cancel.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}
