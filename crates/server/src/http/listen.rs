//! Connections: TLS or plain, HTTP/1.1 or HTTP/2, with every limit explicit.
//!
//! Source: apiserver `pkg/server/secure_serving.go`; the limits against resets are for CVE-2023-44487 and its kin.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::reply::Body;
use super::takeover::{self, Events, Lent, Takeover};
use crate::identity::{PeerCertificates, Proved};
use crate::server::Server;

type Error = Box<dyn std::error::Error + Send + Sync>;

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
    ) -> Result<(), Error> {
        stream.set_nodelay(true)?;
        // A peer that vanished ends its watches and tunnels too. Go's intervals.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
        let Some(acceptor) = acceptor else {
            let peer = Peer { address: peer, certificates: PeerCertificates::default() };
            return self.http1(stream, peer, cancel).await;
        };
        // Stages are boxed, because a task keeps room for the largest that it ever holds.
        let mut stream = Box::new(tokio::time::timeout(HANDSHAKE, Box::pin(acceptor.accept(stream))).await??);
        // Until it asks for something, a connection has none of hyper's buffers.
        let first = tokio::time::timeout(HEADERS, stream.fill_buf());
        match cancel.run_until_cancelled(first).await {
            Some(first) => drop(first??),
            None => return Ok(()),
        }
        let session = stream.get_ref().1;
        let leaf = session.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
        let peer = Peer { address: peer, certificates: Arc::new(Proved::new(leaf)) };
        if session.alpn_protocol() == Some(b"h2") {
            Box::pin(self.http2(stream, peer, cancel)).await
        } else {
            self.http1(stream, peer, cancel).await
        }
    }

    /// Serves requests, until one is a watch that takes the connection.
    async fn http1<S>(self: Arc<Self>, stream: S, peer: Peer, cancel: CancellationToken) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match Box::pin(self.requests(stream, peer, cancel)).await? {
            Some((stream, events)) => Ok(takeover::tell(stream, events).await?),
            None => Ok(()),
        }
    }

    async fn requests<S>(
        self: Arc<Self>,
        stream: S,
        peer: Peer,
        cancel: CancellationToken,
    ) -> Result<Option<(S, Events)>, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let lent = Lent::new(stream);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(MAX_HEADERS as usize * 2)
            .serve_connection(TokioIo::new(lent.share()), self.service(peer, Some(lent.takeover())))
            .with_upgrades();
        let ended = drive(Box::pin(connection), |connection| connection.graceful_shutdown(), cancel).await;
        match lent.taken() {
            Some(taken) => Ok(Some(taken)),
            None => Ok(ended.map(|()| None)?),
        }
    }

    async fn http2<S>(self: Arc<Self>, stream: S, peer: Peer, cancel: CancellationToken) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connection = http2::Builder::new(TokioExecutor::new())
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
            .keep_alive_timeout(PING / 2)
            .serve_connection(TokioIo::new(stream), self.service(peer, None));
        Ok(drive(Box::pin(connection), |connection| connection.graceful_shutdown(), cancel).await?)
    }

    fn service(
        self: Arc<Self>,
        peer: Peer,
        takeover: Option<Takeover>,
    ) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static> {
        service_fn(move |mut request: Request<Incoming>| {
            // Older clients know no chunks.
            if request.version() == Version::HTTP_11
                && let Some(takeover) = &takeover
            {
                request.extensions_mut().insert(takeover.clone());
            }
            let (server, certificates) = (self.clone(), peer.certificates.clone());
            // Boxed, because hyper keeps room for it between requests and while an answer is sent.
            Box::pin(async move { Ok::<Response<Body>, _>(server.handle(request, peer.address, certificates).await) })
        })
    }
}

/// Who is at the other end.
struct Peer {
    address: SocketAddr,
    certificates: PeerCertificates,
}

/// Serves a connection to its end, or until `cancel` what it has begun.
async fn drive<C: Future>(
    mut connection: Pin<Box<C>>,
    end: impl FnOnce(Pin<&mut C>),
    cancel: CancellationToken,
) -> C::Output {
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = cancel.cancelled() => end(connection.as_mut()),
    }
    connection.await
}
