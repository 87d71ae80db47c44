//! The cluster's DNS server, on a thread of its own: no flood of HTTPS delays it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};
use wire::dns::{Reply, Zone, encode, refusal, udp_limit};
use wire::edge::{Role, Socket};

use crate::forward::Forwarder;

/// Queries of one client that wait for an upstream.
const MAX_WAITING_PER_CLIENT: usize = 128;
/// TCP connections at once, and how long one may be idle. RFC 7766 section 6.2.3.
const MAX_CONNECTIONS: usize = 256;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long to wait after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

struct Shared {
    zone: RwLock<Option<Arc<Zone>>>,
    forwarder: Forwarder,
    queries: AtomicU64,
    waiting: Mutex<HashMap<IpAddr, usize>>,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// The server and its thread.
pub struct Dns {
    handle: Handle,
    thread: JoinHandle<()>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Dns {
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            runtime.block_on(stopped.cancelled());
        })?;
        let shared = Arc::new(Shared {
            zone: RwLock::default(),
            forwarder: Forwarder::default(),
            queries: AtomicU64::new(0),
            waiting: Mutex::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tasks: TaskTracker::new(),
        });
        Ok(Self { handle, thread, shared, stop })
    }

    pub fn listen(&mut self, socket: &Socket, descriptor: OwnedFd) -> io::Result<()> {
        let _context = self.handle.enter();
        let shared = self.shared.clone();
        if socket.role == Role::DnsUdp {
            let socket = std::net::UdpSocket::from(descriptor);
            socket.set_nonblocking(true)?;
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            let serving = async move {
                // Whatever a query may do to the server, the next one is answered.
                while let Err(panic) = tokio::spawn(serve_udp(shared.clone(), socket.clone())).await {
                    error!(%panic, "a DNS query could not be served");
                }
            };
            self.shared.tasks.spawn_on(serving, &self.handle);
        } else {
            let listener = std::net::TcpListener::from(descriptor);
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            self.shared.tasks.spawn_on(serve_tcp(shared, listener), &self.handle);
        }
        Ok(())
    }

    /// Answers from now on come from these names.
    pub fn replace(&self, names: wire::edge::Dns) {
        match Zone::new(names) {
            Ok(zone) => {
                *self.shared.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(zone));
            }
            Err(error) => warn!(%error, "the names are not usable; going on with those before"),
        }
    }

    pub fn queries(&self) -> u64 {
        self.shared.queries.load(Ordering::Relaxed)
    }

    /// Ends at once: clients ask again.
    pub fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            warn!("the DNS server's thread had panicked");
        }
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Such as the notice that an earlier client's port is closed.
            Err(_) => continue,
        };
        let Some(query) = shared.parse(&buffer[..length]) else { continue };
        let limit = udp_limit(&query);
        match shared.decide(&query) {
            Decision::Answer(message) => {
                if let Ok(bytes) = encode(&message, limit) {
                    // A client that cannot be reached asks again, or not.
                    let _best_effort = socket.try_send_to(&bytes, client);
                }
            }
            Decision::Ask(pending) => {
                let Some(waiting) = Waiting::new(&shared, client.ip()) else {
                    if let Ok(bytes) = encode(&refusal(&query, ResponseCode::Refused), limit) {
                        let _best_effort = socket.try_send_to(&bytes, client);
                    }
                    continue;
                };
                let socket = socket.clone();
                shared.tasks.spawn(async move {
                    let message = waiting.shared.ask(&query, pending).await;
                    if let Ok(bytes) = encode(&message, limit) {
                        let _best_effort = socket.send_to(&bytes, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Ok(permit) = shared.connections.clone().try_acquire_owned() else { continue };
                let serving = shared.clone();
                shared.tasks.spawn(async move {
                    let _permit = permit;
                    // Its errors are the client's.
                    let _ended = serve_stream(serving, stream, client).await;
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve_stream(shared: Arc<Shared>, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    loop {
        let length = timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(query) = shared.parse(&bytes) else { return Ok(()) };
        let message = match shared.decide(&query) {
            Decision::Answer(message) => message,
            Decision::Ask(pending) => match Waiting::new(&shared, client.ip()) {
                Some(_waiting) => shared.ask(&query, pending).await,
                None => refusal(&query, ResponseCode::Refused),
            },
        };
        let bytes = encode(&message, usize::from(u16::MAX)).map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

#[allow(clippy::large_enum_variant, reason = "it lives for one query, on the stack")]
enum Decision {
    Answer(Message),
    Ask(Pending),
}

/// What an upstream has to be asked for.
#[allow(clippy::large_enum_variant, reason = "it lives for one query, on the stack")]
enum Pending {
    Whole(Arc<Zone>),
    Target(Arc<Zone>, Message, hickory_proto::rr::Name),
}

impl Shared {
    /// Reads a query; `None` for what deserves no answer.
    fn parse(&self, bytes: &[u8]) -> Option<Message> {
        let query = Message::from_vec(bytes).ok()?;
        (query.metadata.message_type == MessageType::Query).then(|| {
            self.queries.fetch_add(1, Ordering::Relaxed);
            query
        })
    }

    fn decide(&self, query: &Message) -> Decision {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(zone) = zone else { return Decision::Answer(refusal(query, ResponseCode::ServFail)) };
        match zone.reply(query) {
            Reply::Answer(message) => Decision::Answer(message),
            Reply::Forward => Decision::Ask(Pending::Whole(zone)),
            Reply::Chase { so_far, target } => Decision::Ask(Pending::Target(zone, so_far, target)),
        }
    }

    async fn ask(&self, query: &Message, pending: Pending) -> Message {
        match pending {
            Pending::Whole(zone) => self.forwarder.ask(zone.upstreams(), query).await,
            Pending::Target(zone, mut so_far, target) => {
                let mut further = query.clone();
                for question in &mut further.queries {
                    question.set_name(target.clone());
                }
                let found = self.forwarder.ask(zone.upstreams(), &further).await;
                so_far.metadata.response_code = found.metadata.response_code;
                so_far.add_answers(found.answers);
                so_far
            }
        }
    }
}

/// A client's place among those that wait for an upstream.
struct Waiting {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl Waiting {
    fn new(shared: &Arc<Shared>, client: IpAddr) -> Option<Self> {
        let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = waiting.entry(client).or_default();
        if *own >= MAX_WAITING_PER_CLIENT {
            return None;
        }
        *own += 1;
        Some(Self { shared: shared.clone(), client })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = waiting.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}
