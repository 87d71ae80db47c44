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

#[cfg(test)]
mod tests {
    use super::*;

    /// The last digits of the order in which `endpoints` endpoints are tried.
    fn order(health: &Health, endpoints: u16, turn: usize, now: Instant) -> Vec<u16> {
        let endpoints: Vec<SocketAddr> = (0..endpoints).map(endpoint).collect();
        health.order(&endpoints, turn, now).iter().map(SocketAddr::port).collect()
    }

    fn endpoint(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn all_take_turns() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(order(&health, 3, 0, now), [0, 1, 2]);
        assert_eq!(order(&health, 3, 1, now), [1, 2, 0]);
        assert_eq!(order(&health, 3, usize::MAX, now), [0, 1, 2]);
        assert!(order(&health, 0, 7, now).is_empty());
    }

    #[test]
    fn who_failed_comes_last_for_a_while() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(endpoint(0), now);
        assert_eq!(order(&health, 3, 0, now), [1, 2, 0]);
        assert_eq!(order(&health, 1, 0, now), [0]);
        assert_eq!(order(&health, 3, 0, now + EJECTION), [0, 1, 2]);
    }

    #[test]
    fn who_answers_is_back() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(endpoint(0), now);
        health.succeeded(endpoint(0));
        assert_eq!(order(&health, 2, 0, now), [0, 1]);
    }
}
