//! Endpoints that refused connections lately are passed over for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an endpoint is passed over. Source: nginx `ngx_http_upstream_module`, `fail_timeout`, but shorter: endpoints here
/// are also taken away by their readiness probes.
const EJECTION: Duration = Duration::from_secs(5);

/// What connections have shown so far.
#[derive(Debug, Default)]
pub struct Health {
    ejected: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Health {
    pub fn failed(&self, endpoint: SocketAddr, now: Instant) {
        let mut ejected = self.lock();
        ejected.retain(|_, until| *until > now);
        ejected.insert(endpoint, now + EJECTION);
    }

    pub fn succeeded(&self, endpoint: SocketAddr) {
        let mut ejected = self.lock();
        if !ejected.is_empty() {
            ejected.remove(&endpoint);
        }
    }

    /// The endpoints in the order in which to try them, beginning behind `turn`: those passed over come last, because an
    /// endpoint that may be dead is better than none.
    pub fn order(&self, endpoints: &[SocketAddr], turn: usize, now: Instant) -> Vec<SocketAddr> {
        let ejected = self.lock();
        let rotated = || endpoints.iter().cycle().skip(turn % endpoints.len().max(1)).take(endpoints.len()).copied();
        if ejected.is_empty() {
            return rotated().collect();
        }
        let bad = |endpoint: &SocketAddr| ejected.get(endpoint).is_some_and(|until| *until > now);
        rotated().filter(|e| !bad(e)).chain(rotated().filter(bad)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
