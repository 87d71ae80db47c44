//! Which address each pod has: blocks of the pod range, addresses that rest for five minutes before they are used again.
//!
//! Pure; the shell remembers nothing but what the kernel's routes and the pods' status say after a restart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use api::cidr::Cidr;
use jiff::Timestamp;

/// How long an address rests after its pod is gone: late packets and caches must not reach another pod.
pub const REST: Duration = Duration::from_secs(300);

/// The addresses of one family on one node. The range's first one is never given: in IPv6 every router answers to it, and in IPv4
/// much software takes it for the network.
#[derive(Debug)]
pub struct Pool {
    blocks: Vec<Cidr>,
    used: BTreeMap<IpAddr, String>,
    resting: BTreeMap<IpAddr, Timestamp>,
    /// Where the search for a free address begins: behind the last one given, so that addresses take turns.
    next: u128,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free address in {}", blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
pub struct Exhausted {
    blocks: Vec<Cidr>,
}

impl Pool {
    pub fn new(blocks: Vec<Cidr>) -> Self {
        Self { blocks, used: BTreeMap::new(), resting: BTreeMap::new(), next: 0 }
    }

    pub fn blocks(&self) -> &[Cidr] {
        &self.blocks
    }

    /// Marks an address as a running pod's; for adoption. Addresses of other ranges are kept too, for they are in use.
    pub fn adopt(&mut self, ip: IpAddr, owner: &str) {
        self.used.insert(ip, owner.to_owned());
    }

    pub fn of(&self, owner: &str) -> Option<IpAddr> {
        self.used.iter().find(|(_, o)| *o == owner).map(|(ip, _)| *ip)
    }

    /// Gives `owner` an address, the same one when it is asked again. When all free ones rest, the one that has rested longest.
    ///
    /// # Errors
    /// [`Exhausted`] when every address is in use.
    pub fn allocate(&mut self, owner: &str, now: Timestamp) -> Result<IpAddr, Exhausted> {
        if let Some(ip) = self.of(owner) {
            return Ok(ip);
        }
        self.resting.retain(|_, since| now.duration_since(*since).unsigned_abs() < REST);
        let size: u128 = self.blocks.iter().map(size).sum();
        let free = (0..size)
            .map(|step| (self.next + step) % size)
            .map(|n| (n, self.nth(n)))
            .filter(|(_, ip)| self.blocks.first().is_none_or(|first| first.address() != *ip))
            .find(|(_, ip)| !self.used.contains_key(ip) && !self.resting.contains_key(ip));
        let ip = match free {
            Some((n, ip)) => {
                self.next = (n + 1) % size;
                ip
            }
            None => {
                let longest = self.resting.iter().min_by_key(|(_, since)| **since).map(|(ip, _)| *ip);
                longest.ok_or_else(|| Exhausted { blocks: self.blocks.clone() })?
            }
        };
        self.resting.remove(&ip);
        self.used.insert(ip, owner.to_owned());
        Ok(ip)
    }

    /// Takes the address back from `owner`.
    pub fn release(&mut self, owner: &str, now: Timestamp) {
        if let Some(ip) = self.of(owner) {
            self.used.remove(&ip);
            self.resting.insert(ip, now);
        }
    }

    fn nth(&self, mut n: u128) -> IpAddr {
        for block in &self.blocks {
            if n < size(block) {
                return block.nth(n);
            }
            n -= size(block);
        }
        unreachable!("callers count modulo the blocks' sizes")
    }
}

fn size(block: &Cidr) -> u128 {
    let width = if block.is_ipv4() { 32 } else { 128 };
    1 << (width - block.prefix()).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(blocks: &[&str]) -> Pool {
        Pool::new(blocks.iter().map(|b| b.parse().expect("range")).collect())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("time")
    }

    #[test]
    fn addresses_take_turns_and_rest() {
        let mut pool = pool(&["10.244.0.0/30"]);
        let first = pool.allocate("a", at(0)).expect("free");
        pool.release("a", at(1));
        assert_ne!(pool.allocate("b", at(2)).expect("free"), first);
        pool.allocate("c", at(3)).expect("free");
        assert_eq!(pool.allocate("d", at(302)).expect("rested"), first);
    }

    #[test]
    fn the_longest_rested_address_is_used_when_nothing_else_is_left() {
        let mut pool = pool(&["10.244.0.0/31", "10.244.0.8/32"]);
        let (a, _b) = (pool.allocate("a", at(0)).expect("free"), pool.allocate("b", at(0)).expect("free"));
        pool.release("a", at(1));
        pool.release("b", at(2));
        assert_eq!(pool.allocate("c", at(3)), Ok(a));
    }

    #[test]
    fn a_pod_keeps_its_address() {
        let mut pool = pool(&["fd00::/122"]);
        pool.adopt("fd00::7".parse().expect("IP"), "a");
        assert_eq!(pool.allocate("a", at(0)), Ok("fd00::7".parse().expect("IP")));
    }

    #[test]
    fn says_which_blocks_are_full() {
        let mut pool = pool(&["10.244.0.0/31"]);
        pool.allocate("a", at(0)).expect("free");
        assert_eq!(pool.allocate("b", at(0)).expect_err("full").to_string(), "no free address in 10.244.0.0/31");
    }
}
