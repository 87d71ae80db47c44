//! A work queue of keys: each at most once, delayed adds, and exponential backoff per key.
//!
//! A pure value: the time is passed in, and whoever owns the queue sleeps until [`Queue::next_deadline`].
//! Source: client-go `util/workqueue/{queue,delaying_queue,default_rate_limiters}.go`. Upstream's overall limit of retries
//! (10 a second) protects a remote server from many keys that fail at once; it is left out because our requests queue in
//! the server's own process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// The delay before the first retry of a key; it doubles with each failure in a row.
pub const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest delay before a retry.
pub const LAST_RETRY: Duration = Duration::from_secs(1000);

/// Keys waiting to be worked on.
///
/// A key that is added while it is being worked on is handed out again when that work is done, never twice at once.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready`, and those being worked on that were added again.
    dirty: BTreeSet<K>,
    active: BTreeSet<K>,
    /// The earliest time at which each delayed key is to be added, and the same ordered by time.
    delayed: BTreeMap<K, Instant>,
    deadlines: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: BTreeSet::new(),
            active: BTreeSet::new(),
            delayed: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            failures: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Queue<K> {
    pub fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.active.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Adds the key at `at`, or earlier when it is already due earlier.
    pub fn add_at(&mut self, key: K, at: Instant) {
        match self.delayed.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => {
                self.deadlines.remove(&(*later, key.clone()));
            }
            None => {}
        }
        self.delayed.insert(key.clone(), at);
        self.deadlines.insert((at, key));
    }

    /// Adds the key after its backoff, which grows until [`Queue::forget`].
    pub fn retry(&mut self, key: K, now: Instant) {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(18)).min(LAST_RETRY);
        *failures += 1;
        self.add_at(key, now + delay);
    }

    /// Ends the backoff of a key that succeeded.
    pub fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How often the key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or_default()
    }

    /// Hands out the next key; [`Queue::done`] must follow.
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((at, _)) = self.deadlines.first()
            && *at <= now
        {
            let (_, key) = self.deadlines.pop_first().expect("just seen");
            self.delayed.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.active.insert(key.clone());
        Some(key)
    }

    /// Ends the work that [`Queue::take`] began.
    pub fn done(&mut self, key: &K) {
        if self.active.remove(key) && self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }

    /// When a delayed key falls due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether nothing is ready, delayed or being worked on.
    pub fn is_idle(&self) -> bool {
        self.dirty.is_empty() && self.active.is_empty() && self.delayed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn hands_out_a_key_once_however_often_it_was_added() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.take(now), Some("a"));
        assert_eq!(queue.take(now), None);
    }

    #[test]
    fn hands_out_again_after_done_what_was_added_meanwhile() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add("a");
        queue.take(now);
        queue.add("a");
        assert_eq!(queue.take(now), None, "one worker per key");
        queue.done(&"a");
        assert_eq!(queue.take(now), Some("a"));
    }

    #[test]
    fn delayed_keys_keep_their_earliest_time() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add_at("a", at(now, 50));
        queue.add_at("a", at(now, 20));
        queue.add_at("a", at(now, 90));
        assert_eq!(queue.next_deadline(), Some(at(now, 20)));
        assert_eq!(queue.take(at(now, 19)), None);
        assert_eq!(queue.take(at(now, 20)), Some("a"));
        queue.done(&"a");
        assert!(queue.is_idle());
    }

    #[test]
    fn backoff_doubles_from_5_ms_to_1000_s_and_forgets() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut delays = Vec::new();
        for _ in 0..25 {
            queue.retry("a", now);
            let due = queue.next_deadline().expect("a retry is due");
            delays.push((due - now).as_millis());
            queue.take(due);
            queue.done(&"a");
        }
        assert_eq!(delays[..4], [5, 10, 20, 40]);
        assert_eq!(delays[24], 1_000_000);
        queue.forget(&"a");
        queue.retry("a", now);
        assert_eq!(queue.next_deadline(), Some(at(now, 5)));
    }
}
