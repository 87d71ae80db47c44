//! Pods that wait for a node: by priority, then by age in the queue; those that fit nowhere rest until something changes.
//!
//! Source: kubernetes `pkg/scheduler/backend/queue/{scheduling_queue,backoff_queue}.go`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::key::Key;
use tokio::time::Instant;

/// The wait after the first failed attempt, doubled by each further one, and its limit.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Queue {
    pods: BTreeMap<Key, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, Key)>,
    backoff: BTreeSet<(Instant, Key)>,
    added: u64,
}

#[derive(Debug)]
struct Entry {
    priority: i32,
    /// Place in the order of additions to the active pods.
    order: u64,
    attempts: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    /// Handed out, or being bound.
    InFlight,
    /// Fits nowhere; worth another look when the cluster changes, but not before the backoff ends unless nothing else waits.
    Unschedulable {
        until: Instant,
    },
    /// Woken during its backoff.
    Woken {
        until: Instant,
    },
    /// An error, not a lack of room: waits its backoff out.
    Failed {
        until: Instant,
    },
}

impl Queue {
    /// Adds a pod, or makes one worth another look whose specification changed. One in flight is left alone.
    pub fn add(&mut self, key: &Key, priority: i32) {
        self.leave(key);
        let new = Entry { priority, order: 0, attempts: 0, state: State::Active };
        let entry = self.pods.entry(key.clone()).or_insert(new);
        entry.priority = priority;
        if entry.state != State::InFlight {
            self.activate(key);
        }
    }

    pub fn remove(&mut self, key: &Key) {
        self.leave(key);
        self.pods.remove(key);
    }

    /// Hands out the most important pod; one that was woken during its backoff when nothing else waits.
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        while let Some((until, key)) = self.backoff.first()
            && *until <= now
        {
            let key = key.clone();
            self.leave(&key);
            self.activate(&key);
        }
        let key = match self.active.pop_first() {
            Some((_, _, key)) => key,
            None => {
                let is_woken = |key: &Key| matches!(self.pods.get(key), Some(Entry { state: State::Woken { .. }, .. }));
                let (_, key) = self.backoff.iter().find(|(_, key)| is_woken(key))?.clone();
                self.leave(&key);
                key
            }
        };
        let entry = self.pods.get_mut(&key).expect("queued pods have entries");
        entry.attempts += 1;
        entry.state = State::InFlight;
        Some(key)
    }

    /// Puts a pod aside that fits nowhere.
    pub fn unschedulable(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.state = State::Unschedulable { until: now + backoff(entry.attempts) };
        }
    }

    /// Puts a pod aside for which something went wrong.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.pods.get_mut(key) {
            let until = now + backoff(entry.attempts);
            entry.state = State::Failed { until };
            self.backoff.insert((until, key.clone()));
        }
    }

    /// Has every pod that fitted nowhere looked at again.
    pub fn wake(&mut self, now: Instant) {
        self.wake_if(now, |_| true);
    }

    /// Has those of the pods looked at again that fitted nowhere and for which the condition holds.
    pub fn wake_if(&mut self, now: Instant, condition: impl Fn(&Key) -> bool) {
        let resting = self.pods.iter().filter_map(|(key, entry)| match entry.state {
            State::Unschedulable { until } => condition(key).then(|| (key.clone(), until)),
            State::Active | State::InFlight | State::Woken { .. } | State::Failed { .. } => None,
        });
        for (key, until) in resting.collect::<Vec<_>>() {
            if until <= now {
                self.activate(&key);
            } else if let Some(entry) = self.pods.get_mut(&key) {
                entry.state = State::Woken { until };
                self.backoff.insert((until, key));
            }
        }
    }

    /// Whether a pod can be taken at once.
    pub fn is_ready(&self) -> bool {
        let woken =
            |(_, key): &(Instant, Key)| matches!(self.pods.get(key), Some(Entry { state: State::Woken { .. }, .. }));
        !self.active.is_empty() || self.backoff.iter().any(woken)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.backoff.first().map(|(until, _)| *until)
    }

    fn activate(&mut self, key: &Key) {
        self.added += 1;
        if let Some(entry) = self.pods.get_mut(key) {
            entry.order = self.added;
            entry.state = State::Active;
            self.active.insert((Reverse(entry.priority), entry.order, key.clone()));
        }
    }

    /// Takes a pod out of the order that it is in.
    fn leave(&mut self, key: &Key) {
        let Some(entry) = self.pods.get(key) else { return };
        match entry.state {
            State::Active => {
                self.active.remove(&(Reverse(entry.priority), entry.order, key.clone()));
            }
            State::Woken { until } | State::Failed { until } => {
                self.backoff.remove(&(until, key.clone()));
            }
            State::InFlight | State::Unschedulable { .. } => {}
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::key::GroupResource;

    fn key(name: &str) -> Key {
        Key::new(&GroupResource::new("", "pods"), "web", name)
    }

    fn taken(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.take(now).map(|key| key.name().to_owned())
    }

    #[test]
    fn the_most_important_pod_comes_first_then_the_one_that_waited_longest() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.add(&key(name), priority);
        }
        let order: Vec<String> = std::iter::from_fn(|| taken(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_pod_that_fits_nowhere_rests_until_something_changes() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(&key("a"), 0);
        queue.take(now);
        queue.unschedulable(&key("a"), now);
        assert_eq!(taken(&mut queue, now + Duration::from_secs(3600)), None);
        assert_eq!(queue.next_deadline(), None, "nothing polls");
        queue.wake(now + Duration::from_secs(3600));
        assert_eq!(taken(&mut queue, now + Duration::from_secs(3600)).as_deref(), Some("a"));
    }

    #[test]
    fn one_that_is_woken_during_its_backoff_yields_to_others_but_not_to_nobody() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(&key("a"), 10);
        queue.take(now);
        queue.unschedulable(&key("a"), now);
        queue.wake(now);
        queue.add(&key("b"), 0);
        assert_eq!(taken(&mut queue, now).as_deref(), Some("b"));
        assert!(queue.is_ready());
        assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
    }

    #[test]
    fn after_an_error_the_backoff_is_waited_out_and_doubles_to_ten_seconds() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.add(&key("a"), 0);
        queue.take(now);
        let mut delays = Vec::new();
        for _ in 0..6 {
            queue.failed(&key("a"), now);
            assert_eq!(taken(&mut queue, now), None);
            let due = queue.next_deadline().expect("it is due some time");
            delays.push((due - now).as_secs());
            now = due;
            assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
        }
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_changed_pod_is_looked_at_again_unless_it_is_being_bound() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(&key("a"), 0);
        queue.take(now);
        queue.add(&key("a"), 5);
        assert_eq!(taken(&mut queue, now), None);
        queue.unschedulable(&key("a"), now);
        queue.add(&key("a"), 5);
        assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
        queue.remove(&key("a"));
        queue.wake(now);
        assert_eq!(taken(&mut queue, now), None);
    }
}
