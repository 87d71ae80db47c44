//! Events about objects, with upstream's counting, aggregation and rate limit.
//!
//! Recording never blocks and never fails: what does not fit into the queue, or what the server refuses, is dropped.
//! Source: client-go `tools/record/{event,events_cache}.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::meta::Meta;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Client, Clock, PatchType};

/// Events that wait to be written. Source: client-go `event.go`, `maxQueuedEvents`.
const QUEUED: usize = 1000;
/// How often an event is sent when the server cannot be reached, and how long to wait in between.
const TRIES: u32 = 12;
const BETWEEN_TRIES: Duration = Duration::from_secs(10);
/// Sources and objects that are remembered by each part of the correlation.
const REMEMBERED: usize = 4096;
/// As many events that differ only by message within the interval become one.
const AGGREGATE_FROM: usize = 10;
const AGGREGATE_WITHIN: Duration = Duration::from_secs(600);
/// What a source may say about one object at once, and how long it takes to earn one more.
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL: Duration = Duration::from_secs(300);
/// The longest name of an object.
const NAME_MAX: usize = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    source: EventSource,
    clock: Clock,
}

/// Returns a reference to an object, as events carry it.
pub fn reference(api_version: &str, kind: &str, meta: &Meta) -> ObjectReference {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ObjectReference {
        api_version: some(api_version),
        kind: some(kind),
        name: some(&meta.name),
        namespace: some(&meta.namespace),
        uid: some(&meta.uid),
        ..ObjectReference::default()
    }
}

/// As [`reference`], for a typed object.
pub fn reference_to<K: crate::typed::Typed>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

impl Recorder {
    /// Starts the task that writes events as `component`; `host` is the node's name, or empty.
    pub fn start(
        client: Client,
        component: &str,
        host: &str,
        clock: Clock,
        tasks: &mut JoinSet<()>,
        cancel: CancellationToken,
    ) -> Self {
        let (queue, events) = mpsc::channel(QUEUED);
        let now = clock.clone();
        tasks.spawn(async move {
            cancel.run_until_cancelled(write_all(client, events, now)).await;
        });
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self { queue, source: EventSource { component: some(component), host: some(host) }, clock }
    }

    /// Records that `reason` happened to the object `about`.
    pub fn event(&self, about: &ObjectReference, severity: Severity, reason: &str, message: impl Into<String>) {
        let event = event(about, &self.source, severity, reason, message.into(), (self.clock)());
        if self.queue.try_send(event).is_err() {
            debug!(reason, "event dropped: too many are waiting");
        }
    }
}

fn event(
    about: &ObjectReference,
    source: &EventSource,
    severity: Severity,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Event {
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(about.name.as_deref().unwrap_or_default(), now)),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        type_: Some(severity.as_str().to_owned()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        source: Some(source.clone()),
        ..Event::default()
    }
}

fn event_name(object: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let mut kept = object.len().min(NAME_MAX - suffix.len());
    while !object.is_char_boundary(kept) {
        kept -= 1;
    }
    format!("{}{suffix}", &object[..kept])
}

async fn write_all(client: Client, mut events: mpsc::Receiver<Event>, clock: Clock) {
    let mut correlator = Correlator::default();
    while let Some(event) = events.recv().await {
        let Some(event) = correlator.correlate(event, clock()) else { continue };
        for attempt in 1..=TRIES {
            match write(&client, &event).await {
                Ok(()) => break,
                // The server has an opinion about this event: it will not change.
                Err(error) if !matches!(error.code, 0 | 429 | 500..) => {
                    debug!(%error, reason = event.reason, "event refused");
                    break;
                }
                Err(error) if attempt == TRIES => warn!(%error, reason = event.reason, "event given up"),
                Err(_) => tokio::time::sleep(BETWEEN_TRIES).await,
            }
        }
    }
}

async fn write(client: &Client, event: &Event) -> Result<(), api::status::Status> {
    if event.count > Some(1) {
        let (namespace, name) = (event.metadata.namespace.as_deref(), event.metadata.name.as_deref());
        let patch = json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message});
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        match client.patch::<Event>(namespace, name, PatchType::Merge, patch).await {
            Ok(_) => return Ok(()),
            // Events expire.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    client.create(event).await.map(drop)
}

/// Decides what becomes of events: written as they are, counted onto an earlier one, combined, or dropped.
#[derive(Default)]
pub struct Correlator {
    aggregates: Recent<Aggregate>,
    observed: Recent<Observed>,
    buckets: Recent<Bucket>,
}

#[derive(Default)]
struct Aggregate {
    messages: BTreeSet<String>,
    last: Option<Timestamp>,
}

/// What is known of an event that was written.
#[derive(Clone)]
struct Observed {
    count: i32,
    first: Option<Time>,
    name: Option<String>,
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

impl Correlator {
    /// Returns the event to write, or `None` when its source has said too much about its object. A `count` above 1 means
    /// that the event of that name exists already.
    pub fn correlate(&mut self, event: Event, now: Timestamp) -> Option<Event> {
        let (event, key) = self.aggregate(event, now);
        let event = self.count(event, key);
        self.within_rate(&event, now).then_some(event)
    }

    fn aggregate(&mut self, event: Event, now: Timestamp) -> (Event, String) {
        let key = key(&event, &[event.reason.as_deref()]);
        let message = event.message.clone().unwrap_or_default();
        let record = self.aggregates.entry(&key, Aggregate::default);
        if record.last.is_none_or(|last| elapsed(last, now) > AGGREGATE_WITHIN) {
            record.messages.clear();
        }
        record.messages.insert(message.clone());
        record.last = Some(now);
        if record.messages.len() < AGGREGATE_FROM {
            let path = event.involved_object.field_path.as_deref();
            let whole = self::key(&event, &[event.reason.as_deref(), path, event.message.as_deref()]);
            return (event, whole);
        }
        record.messages.pop_first();
        let combined = Event { message: Some(format!("(combined from similar events): {message}")), ..event };
        (combined, key)
    }

    fn count(&mut self, mut event: Event, key: String) -> Event {
        if let Some(earlier) = self.observed.get(&key) {
            event.metadata.name.clone_from(&earlier.name);
            event.first_timestamp.clone_from(&earlier.first);
            event.count = Some(earlier.count.saturating_add(1));
        }
        let count = event.count.unwrap_or(1);
        let now = Observed { count, first: event.first_timestamp.clone(), name: event.metadata.name.clone() };
        *self.observed.entry(&key, || now.clone()) = now.clone();
        event
    }

    fn within_rate(&mut self, event: &Event, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(&key(event, &[]), || Bucket { tokens: SPAM_BURST, filled: now });
        let earned = elapsed(bucket.filled, now).as_secs_f64() / SPAM_REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + earned).min(SPAM_BURST);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

/// Time that passed; none when the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Joins what identifies the source and the object, and `more`.
fn key(event: &Event, more: &[Option<&str>]) -> String {
    let source = event.source.as_ref();
    let about = &event.involved_object;
    let parts = [
        source.and_then(|source| source.component.as_deref()),
        source.and_then(|source| source.host.as_deref()),
        about.kind.as_deref(),
        about.namespace.as_deref(),
        about.name.as_deref(),
        about.uid.as_deref(),
        about.api_version.as_deref(),
        event.type_.as_deref(),
    ];
    parts.iter().chain(more).map(|part| part.unwrap_or_default()).collect::<Vec<_>>().join("\0")
}

/// The most recently used values by key.
struct Recent<V> {
    values: BTreeMap<Arc<str>, (u64, V)>,
    used: BTreeMap<u64, Arc<str>>,
    clock: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), used: BTreeMap::new(), clock: 0 }
    }
}

impl<V> Recent<V> {
    fn get(&self, key: &str) -> Option<&V> {
        self.values.get(key).map(|(_, value)| value)
    }

    fn entry(&mut self, key: &str, new: impl FnOnce() -> V) -> &mut V {
        self.clock += 1;
        if !self.values.contains_key(key)
            && self.values.len() >= REMEMBERED
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.values.remove(&oldest);
        }
        let key: Arc<str> = key.into();
        let (used, value) = self.values.entry(key.clone()).or_insert_with(|| (0, new()));
        self.used.remove(used);
        *used = self.clock;
        self.used.insert(self.clock, key);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(reason: &str, message: &str, second: i64) -> Event {
        let about =
            ObjectReference { kind: Some("Pod".into()), name: Some("web".into()), ..ObjectReference::default() };
        let source = EventSource { component: Some("kubelet".into()), host: None };
        event(&about, &source, Severity::Normal, reason, message.into(), at(second))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_same_event_again_is_counted_onto_the_first() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(said("Pulled", "m", 1), at(1)).unwrap();
        let second = correlator.correlate(said("Pulled", "m", 5), at(5)).unwrap();
        assert_eq!((first.count, second.count), (Some(1), Some(2)));
        assert_eq!(second.metadata.name, first.metadata.name);
        assert_eq!((second.first_timestamp, second.last_timestamp), (Some(Time(at(1))), Some(Time(at(5)))));
    }

    #[test]
    fn the_tenth_event_that_differs_only_by_message_is_combined() {
        let mut correlator = Correlator::default();
        let mut written = Vec::new();
        for n in 1..=11 {
            written.push(correlator.correlate(said("Failed", &format!("m{n}"), n), at(n)).unwrap());
        }
        assert_eq!(written[8].message.as_deref(), Some("m9"));
        assert_eq!(written[9].message.as_deref(), Some("(combined from similar events): m10"));
        assert_eq!(written[10].message.as_deref(), Some("(combined from similar events): m11"));
        assert_eq!(written[10].count, Some(2));
        assert_eq!(written[10].metadata.name, written[9].metadata.name);
    }

    #[test]
    fn similar_events_far_apart_are_not_combined() {
        let mut correlator = Correlator::default();
        for n in 1..=15 {
            let event = correlator.correlate(said("Failed", &format!("m{n}"), n * 601), at(n * 601)).unwrap();
            assert_eq!(event.message, Some(format!("m{n}")));
        }
    }

    #[test]
    fn a_source_may_say_25_things_about_an_object_and_one_more_each_five_minutes() {
        let mut correlator = Correlator::default();
        let mut say = |second| correlator.correlate(said("BackOff", "m", second), at(second)).is_some();
        assert_eq!((0..40).filter(|_| say(0)).count(), 25);
        assert!(!say(299));
        assert!(say(301));
    }

    #[test]
    fn names_stay_within_the_limit() {
        let name = event_name(&"é".repeat(200), at(1));
        assert!(name.len() <= NAME_MAX && name.ends_with(".3b9aca00"), "{name}");
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_first() {
        let mut recent: Recent<u32> = Recent::default();
        for n in 0..REMEMBERED {
            recent.entry(&n.to_string(), || 0);
        }
        recent.entry("0", || 0);
        recent.entry("new", || 0);
        assert!(recent.get("0").is_some() && recent.get("1").is_none());
    }
}
