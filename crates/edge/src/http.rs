//! Listening for HTTP and HTTPS, and the connections of clients.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wire::edge::{Counters, Problem, Role, Socket, Table};

use crate::access_log::AccessLog;
use crate::live::Live;
use crate::proxy::{self, Peer};
use crate::shared::{Admitted, Running, Shared};
use crate::stream::Impatient;
use crate::tls;

/// Threads for requests, at most; a machine with fewer processors has one for each.
const MAX_WORKERS: usize = 4;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may be idle. Source: nginx `client_header_timeout`.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest head of a request. Source: nginx `large_client_header_buffers` is 4 of 8 kB.
const MAX_HEAD: usize = 32 << 10;
/// Source: nginx `http2_max_concurrent_streams`.
const MAX_STREAMS: u32 = 128;
/// Flow-control windows of HTTP/2: the default of 64 kB makes uploads slow on long lines.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams that a client reset and that are not yet forgotten; more end the connection (CVE-2023-44487).
const MAX_RESETS: usize = 32;
/// Streams that the client's errors made the edge reset; more end the connection (CVE-2025-8671).
const MAX_LOCAL_RESETS: usize = 256;
/// How long to wait after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests may go on after [`Http::drain`] was called.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// The proxy and its runtime.
pub struct Http {
    runtime: Runtime,
    shared: Arc<Shared>,
    tls: Arc<ServerConfig>,
    stop: CancellationToken,
}

impl Http {
    pub fn start(log: AccessLog) -> io::Result<Self> {
        let processors = rustix::thread::sched_getaffinity(None)?.count() as usize;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(processors.clamp(1, MAX_WORKERS))
            .thread_name("http")
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::new(log)?);
        let tls = tls::server_config(Arc::clone(&shared.live)).map_err(io::Error::other)?;
        Ok(Self { runtime, shared, tls, stop: CancellationToken::new() })
    }

    /// Begins to accept.
    pub fn listen(&mut self, socket: &Socket, descriptor: OwnedFd) -> io::Result<()> {
        let listener = std::net::TcpListener::from(descriptor);
        listener.set_nonblocking(true)?;
        let _context = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let tls = (socket.role == Role::Https).then(|| TlsAcceptor::from(self.tls.clone()));
        if tls.is_some() {
            self.shared.https_port.store(socket.address.port(), Ordering::Relaxed);
        }
        let port = socket.address.port();
        let accepting = Accepting { shared: self.shared.clone(), tls, port, stop: self.stop.clone() };
        self.shared.tasks.spawn_on(accepting.run(listener), self.runtime.handle());
        Ok(())
    }

    /// Requests from now on follow this table.
    pub fn replace(&self, table: Table) -> Vec<Problem> {
        let (live, problems) = Live::new(table, &self.shared.live());
        self.shared.pool.keep_only(&live.endpoints().collect());
        *self.shared.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
        problems
    }

    /// Requests that end from now on are logged here.
    pub fn log_to(&self, descriptor: OwnedFd) -> io::Result<()> {
        self.shared.log.replace(descriptor)
    }

    pub fn counters(&self) -> Counters {
        Counters {
            requests: self.shared.requests.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            dns_queries: 0,
        }
    }

    /// Accepts no more, lets what runs come to its end, within bounds.
    pub fn drain(self) {
        self.stop.cancel();
        self.shared.tasks.close();
        let finished = self.runtime.block_on(async { timeout(DRAIN_TIME, self.shared.tasks.wait()).await });
        if finished.is_err() {
            warn!(connections = self.shared.tasks.len(), "connections did not end in time");
        }
        self.runtime.shutdown_background();
    }
}

/// One listening socket.
struct Accepting {
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    port: u16,
    stop: CancellationToken,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(admitted) = Admitted::new(&self.shared, address.ip().to_canonical()) else { continue };
                    let peer = Peer { address, port: self.port, tls: self.tls.is_some() };
                    let (tls, stop) = (self.tls.clone(), self.stop.clone());
                    self.shared.tasks.spawn(connection(admitted, stream, peer, tls, stop));
                }
                Err(error) if is_clients(&error) => {}
                Err(error) => {
                    warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn is_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn connection(
    admitted: Admitted,
    stream: TcpStream,
    peer: Peer,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    // Nobody can be told; the connection works without.
    let _best_effort = stream.set_nodelay(true);
    let stream = Impatient::new(stream);
    let shared = &admitted.shared;
    let Some(acceptor) = tls else { return http1(shared, stream, peer, &stop).await };
    // A client that cannot agree on TLS has been told so by an alert.
    let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(shared, stream, peer, &stop).await;
    } else {
        http1(shared, stream, peer, &stop).await;
    }
}

async fn http1<S>(shared: &Arc<Shared>, stream: S, peer: Peer, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(proxy::serve(shared, peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        // Its errors are the client's.
        _ended = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ended = connection.await;
}

async fn http2<S>(shared: &Arc<Shared>, stream: S, peer: Peer, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (running, begun) = (Arc::<AtomicUsize>::default(), AtomicUsize::new(0));
    let mut seen = 0;
    let service = service_fn(|request| {
        begun.fetch_add(1, Ordering::Relaxed);
        let (shared, running) = (shared.clone(), Running::new(&running));
        async move { Ok::<_, Infallible>(proxy::serve(shared, peer, request).await.map(|body| body.holding(running))) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            _ended = connection.as_mut() => return,
            () = stop.cancelled() => break,
            // hyper has no limit for idle connections of this version.
            () = tokio::time::sleep(HEADER_TIMEOUT) => {
                let began = begun.load(Ordering::Relaxed);
                if running.load(Ordering::Relaxed) == 0 && began == seen {
                    break;
                }
                seen = began;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}

#[cfg(test)]
mod tests;
