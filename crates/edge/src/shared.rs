//! What all requests share, and how many connections and requests there are.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::health::Health;
use crate::live::Live;
use crate::pool::Pool;
use crate::tls;

/// Connections of all clients, and of one address.
pub const MAX_CONNECTIONS: usize = 8192;
pub const MAX_CONNECTIONS_PER_CLIENT: usize = 1024;

/// What all requests share.
pub struct Shared {
    pub live: Arc<RwLock<Arc<Live>>>,
    pub pool: Arc<Pool>,
    pub health: Health,
    pub log: Arc<AccessLog>,
    pub requests: AtomicU64,
    pub connections: AtomicU64,
    /// Where clients of plain HTTP are sent to; 0 as long as nobody listens.
    pub https_port: AtomicU16,
    /// Connections, and what outlives its request.
    pub tasks: TaskTracker,
    clients: Mutex<Clients>,
}

/// The connections of each client.
#[derive(Default)]
struct Clients {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Clients {
    /// Counts one more connection; false when there are enough.
    fn admit(&mut self, client: IpAddr) -> bool {
        if self.total >= MAX_CONNECTIONS {
            return false;
        }
        let own = self.by_address.entry(client).or_default();
        if *own >= MAX_CONNECTIONS_PER_CLIENT {
            return false;
        }
        *own += 1;
        self.total += 1;
        true
    }

    fn leave(&mut self, client: IpAddr) {
        self.total -= 1;
        if let Some(own) = self.by_address.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                self.by_address.remove(&client);
            }
        }
    }
}

/// Whose connections are counted together: a client has a /64 of IPv6.
fn counted(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::from((ip.to_bits() >> 64 << 64).to_be_bytes()),
    }
}

impl Shared {
    pub fn new(log: AccessLog) -> io::Result<Self> {
        Ok(Self {
            live: Arc::default(),
            pool: Arc::new(Pool::new(tls::client_config().map_err(io::Error::other)?)),
            health: Health::default(),
            log: Arc::new(log),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            https_port: AtomicU16::new(0),
            tasks: TaskTracker::new(),
            clients: Mutex::default(),
        })
    }

    /// The table of the moment; a request keeps it to its end.
    pub fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A place among the connections, given up when it is dropped.
pub struct Admitted {
    pub shared: Arc<Shared>,
    client: IpAddr,
}

impl Admitted {
    /// `None` when there are enough connections, of all clients or of this one.
    pub fn new(shared: &Arc<Shared>, client: IpAddr) -> Option<Self> {
        let client = counted(client);
        if !shared.clients.lock().unwrap_or_else(PoisonError::into_inner).admit(client) {
            return None;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Some(Self { shared: shared.clone(), client })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).leave(self.client);
    }
}

/// A request that has not ended.
pub struct Running(Arc<AtomicUsize>);

impl Running {
    pub fn new(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
