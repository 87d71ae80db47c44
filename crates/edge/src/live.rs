//! The table in use: what main sent, ready for requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wire::edge::{Host, Problem, Route, Table, Target, Upstream};

use crate::certificates::Certificates;

#[derive(Debug, Default)]
pub struct Live {
    pub certificates: Certificates,
    hosts: HashMap<String, Host>,
    upstreams: Vec<Balanced>,
}

/// The endpoints of a service and whose turn it is.
#[derive(Debug)]
pub struct Balanced {
    pub upstream: Upstream,
    turn: Arc<AtomicUsize>,
}

impl Balanced {
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl Live {
    /// Makes a table usable. Turns go on where the table before had them.
    pub fn new(table: Table, before: &Self) -> (Self, Vec<Problem>) {
        let (certificates, problems) = Certificates::new(&table.certificates);
        let turns: HashMap<&str, &Arc<AtomicUsize>> =
            before.upstreams.iter().map(|known| (known.upstream.name.as_str(), &known.turn)).collect();
        let balanced = |upstream: Upstream| {
            let turn = turns.get(upstream.name.as_str()).map(|turn| Arc::clone(turn)).unwrap_or_default();
            Balanced { upstream, turn }
        };
        let upstreams = table.upstreams.into_iter().map(balanced).collect();
        (Self { certificates, hosts: table.hosts.into_iter().collect(), upstreams }, problems)
    }

    /// Finds the rule for a request. `host` is lower-case and without port, `path` normalized.
    pub fn route(&self, host: &str, path: &str) -> Option<&Route> {
        let wildcard = || host.split_once('.').and_then(|(_, parent)| self.hosts.get(&format!("*.{parent}")));
        let host = self.hosts.get(host).or_else(wildcard).or_else(|| self.hosts.get(""))?;
        host.routes.iter().find(|route| route.path.matches(path))
    }

    pub fn upstream(&self, target: &Target) -> Option<&Balanced> {
        match target {
            Target::Upstream(index) => self.upstreams.get(*index),
            Target::Status(_) => None,
        }
    }

    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.upstreams.iter().flat_map(|balanced| balanced.upstream.endpoints.iter().copied())
    }
}
