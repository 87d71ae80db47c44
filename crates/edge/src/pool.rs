//! Connections to endpoints, kept for the next request.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::progress::{Progress, Stage};
use crate::request_body::RequestBody;

/// How many idle connections an endpoint keeps. Source: ingress-nginx `upstream-keepalive-connections` is 320 for all.
const IDLE_PER_ENDPOINT: usize = 64;
/// How long a connection may be idle. Source: ingress-nginx `upstream-keepalive-timeout`.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// One endpoint, as it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: bool,
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection in time")]
    TimedOut,
    #[error("no connection")]
    Io(#[from] io::Error),
    #[error("no HTTP on the connection")]
    Handshake(#[from] hyper::Error),
}

/// A connection and since when it is idle.
type IdleConnection = (SendRequest<RequestBody>, Instant);

#[derive(Default)]
struct Idle {
    connections: HashMap<Target, Vec<IdleConnection>>,
    /// A task looks after them.
    swept: bool,
}

fn is_usable((sender, since): &IdleConnection) -> bool {
    !sender.is_closed() && since.elapsed() < IDLE_TIME
}

pub struct Pool {
    idle: Mutex<Idle>,
    tls: Arc<ClientConfig>,
    /// The tasks that drive connections.
    tasks: TaskTracker,
}

/// A connection for one request.
pub struct Connection {
    pub sender: SendRequest<RequestBody>,
    pub target: Target,
}

impl Pool {
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { idle: Mutex::default(), tls, tasks: TaskTracker::new() }
    }

    /// A connection that is there and idle.
    pub fn take(&self, target: Target) -> Option<Connection> {
        let mut idle = self.lock();
        let connections = idle.connections.get_mut(&target)?;
        connections.retain(is_usable);
        // One that has just been given back may not have noticed its answer's end yet.
        let ready = connections.iter().rposition(|(sender, _)| sender.is_ready())?;
        let (sender, _) = connections.remove(ready);
        Some(Connection { sender, target })
    }

    /// Opens a connection.
    pub async fn connect(&self, target: Target, limit: Duration) -> Result<Connection, ConnectError> {
        match timeout(limit, self.open(target)).await {
            Ok(opened) => Ok(Connection { sender: opened?, target }),
            Err(_) => Err(ConnectError::TimedOut),
        }
    }

    async fn open(&self, target: Target) -> Result<SendRequest<RequestBody>, ConnectError> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        if target.tls {
            let connector = TlsConnector::from(self.tls.clone());
            self.speak(connector.connect(ServerName::from(target.address.ip()), stream).await?).await
        } else {
            self.speak(stream).await
        }
    }

    async fn speak<S>(&self, stream: S) -> Result<SendRequest<RequestBody>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn(async move {
            // Its errors are those of the request in flight, or nobody's.
            let _closed = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    fn give_back(self: Arc<Self>, target: Target, sender: SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        let connections = idle.connections.entry(target).or_default();
        if connections.len() < IDLE_PER_ENDPOINT {
            connections.push((sender, Instant::now()));
        }
        if !idle.swept
            && let Ok(runtime) = Handle::try_current()
        {
            idle.swept = true;
            drop(idle);
            let pool = self.clone();
            self.tasks.spawn_on(async move { pool.sweep().await }, &runtime);
        }
    }

    /// Closes connections that nobody needs any more, as long as there are any.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(IDLE_TIME).await;
            let mut idle = self.lock();
            idle.connections.retain(|_, connections| {
                connections.retain(is_usable);
                !connections.is_empty()
            });
            if idle.connections.is_empty() {
                idle.swept = false;
                return;
            }
        }
    }

    /// Closes idle connections to endpoints that are gone.
    pub fn keep_only(&self, endpoints: &HashSet<SocketAddr>) {
        self.lock().connections.retain(|target, _| endpoints.contains(&target.address));
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose answer is still being read.
pub struct Lease {
    connection: Connection,
    progress: Arc<Progress>,
    pool: Arc<Pool>,
}

impl Lease {
    pub fn new(connection: Connection, progress: Arc<Progress>, pool: Arc<Pool>) -> Self {
        Self { connection, progress, pool }
    }

    /// The answer is read. The connection is of use only if the request was sent to its end.
    pub fn give_back(self) {
        if self.progress.stage() == Stage::Sent {
            self.pool.give_back(self.connection.target, self.connection.sender);
        }
    }
}
