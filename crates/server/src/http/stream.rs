//! A watch as a stream of JSON lines. Each event is encoded once for all watchers that see it in the same form.
//!
//! The stream is pulled by the connection: a slow client is asked for nothing and holds nothing but its place.
//! Source: apiserver `pkg/endpoints/handlers/watch.go`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::key::Key;
use api::object::{Change, Object};
use api::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::negotiate::Form;
use super::takeover::Events;
use crate::encode::{Include, table};
use crate::registry::Registry;
use crate::registry::catalog::Served;
use crate::registry::watch::{Event, Watch};

/// Upstream's interval of bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Ready events are sent in one piece up to this size.
const PIECE: usize = 64 * 1024;

/// A watch sends this many pieces as soon as there is something to send …
const BURST: u32 = 8;

/// … and after that one in each such time, with all that has happened meanwhile: a storm of changes costs a watcher few writes, and
/// the one change or the few that are waited for come at once.
const PACE: Duration = Duration::from_millis(5);

/// Bytes of encodings kept for other watchers: the events that several watchers have just been woken for.
const KEPT: usize = 1024 * 1024;

/// Encodings of recent events, shared by all watchers.
#[derive(Default)]
pub struct Encodings(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    by_revision: BTreeMap<u64, Vec<(Key, Encoding, Bytes)>>,
    bytes: usize,
}

/// In which form an event is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Encoding {
    event: &'static str,
    version: usize,
    form: Form,
    include: Include,
    headers: bool,
    /// For tables, whose ages are as of now.
    second: i64,
}

impl Encodings {
    fn get_or(&self, object: &Object, form: Encoding, encode: impl FnOnce() -> Bytes) -> Bytes {
        let lock = || self.0.lock().expect("no holder of this lock can panic");
        let find = |recent: &Recent| {
            let mut known = recent.by_revision.get(&object.revision)?.iter();
            known.find(|(key, known, _)| *known == form && key == object.key()).map(|(.., bytes)| bytes.clone())
        };
        let known = find(&lock());
        if let Some(bytes) = known {
            return bytes;
        }
        // Two watchers may encode the same event at the same time; neither waits for the other.
        let bytes = encode();
        let mut recent = lock();
        recent.bytes += bytes.len();
        recent.by_revision.entry(object.revision).or_default().push((object.key().clone(), form, bytes.clone()));
        while recent.bytes > KEPT
            && let Some((_, oldest)) = recent.by_revision.pop_first()
        {
            recent.bytes -= oldest.iter().map(|(.., bytes)| bytes.len()).sum::<usize>();
        }
        bytes
    }
}

/// How a watch is sent.
#[derive(Clone, Copy)]
pub struct Sending {
    pub form: Form,
    pub include: Include,
    pub bookmarks: bool,
    /// When the watch ends.
    pub timeout: Duration,
}

struct Sender {
    watch: Watch,
    registry: Arc<Registry>,
    encodings: Arc<Encodings>,
    served: Served,
    sending: Sending,
    deadline: Instant,
    /// The deadline, or a bookmark before it.
    alarm: Pin<Box<Sleep>>,
    /// The last revision that the client knows of.
    told: u64,
    /// Whether the next table needs its column headers.
    headers: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    pace: Pace,
    over: bool,
}

/// When the next piece may be sent. Source: the generic cell rate algorithm (ITU-T I.371, annex A).
struct Pace {
    /// When the pieces sent so far would be paid for at one in each [`PACE`].
    paid: Instant,
}

impl Pace {
    /// The time of the next piece, when it has not come yet.
    fn wait(&self, now: Instant) -> Option<Instant> {
        Some(self.paid - PACE * (BURST - 1)).filter(|at| *at > now)
    }

    fn sent(&mut self, now: Instant) {
        self.paid = self.paid.max(now) + PACE;
    }
}

/// What woke the stream.
enum Woken {
    Event(Result<Event, Status>),
    Alarm,
    Shutdown,
}

/// The lines of a watch until its time is over, the server stops, or its place is compacted away.
pub fn stream(
    watch: Watch,
    registry: Arc<Registry>,
    encodings: Arc<Encodings>,
    sending: Sending,
    shutdown: CancellationToken,
) -> Events {
    let deadline = Instant::now() + sending.timeout;
    let sender = Sender {
        served: watch.selection().served.clone(),
        watch,
        registry,
        encodings,
        sending,
        deadline,
        alarm: Box::pin(sleep_until(alarm(sending, deadline))),
        told: 0,
        headers: true,
        shutdown: Box::pin(shutdown.cancelled_owned()),
        pace: Pace { paid: Instant::now() },
        over: false,
    };
    let next = |mut sender: Sender| async move { sender.next().await.map(|piece| (piece, sender)) };
    Box::pin(futures_util::stream::unfold(sender, next))
}

/// When a watch has something to do though nothing happens.
fn alarm(sending: Sending, deadline: Instant) -> Instant {
    if sending.bookmarks { deadline.min(Instant::now() + BOOKMARKS) } else { deadline }
}

impl Sender {
    async fn next(&mut self) -> Option<Vec<Bytes>> {
        loop {
            if self.over {
                return None;
            }
            let woken = self.woken().await;
            let piece = self.apply(woken);
            if !piece.is_empty() {
                self.pace.sent(Instant::now());
                return Some(piece);
            }
        }
    }

    /// Waits for something to do, and in a storm for the time of the next piece: then what is no event has its turn.
    async fn woken(&mut self) -> Woken {
        // What is there goes as fast as the client takes it.
        if !self.watch.is_ready()
            && let Some(at) = self.pace.wait(Instant::now())
        {
            tokio::select! {
                () = self.alarm.as_mut() => return Woken::Alarm,
                () = self.shutdown.as_mut() => return Woken::Shutdown,
                () = sleep_until(at) => {}
            }
        }
        // Events first, which are what wakes this almost always.
        tokio::select! {
            biased;
            event = self.watch.next() => Woken::Event(event),
            () = self.alarm.as_mut() => Woken::Alarm,
            () = self.shutdown.as_mut() => Woken::Shutdown,
        }
    }

    /// What to send now; nothing is empty.
    fn apply(&mut self, woken: Woken) -> Vec<Bytes> {
        match woken {
            Woken::Event(Ok(event)) => self.piece(event),
            Woken::Event(Err(status)) => {
                self.over = true;
                vec![failure(&status)]
            }
            Woken::Alarm if Instant::now() < self.deadline => {
                self.alarm.as_mut().reset(alarm(self.sending, self.deadline));
                self.bookmark().into_iter().collect()
            }
            Woken::Alarm | Woken::Shutdown => {
                self.over = true;
                // The client resumes from here instead of from its last event.
                self.sending.bookmarks.then(|| self.bookmark()).flatten().into_iter().collect()
            }
        }
    }

    /// The event and all that are ready behind it.
    fn piece(&mut self, first: Event) -> Vec<Bytes> {
        let (mut piece, mut size, mut next) = (Vec::new(), 0, Some(first));
        while let Some(event) = next.take() {
            if let Some(bytes) = self.encode(event) {
                size += bytes.len();
                piece.push(bytes);
            }
            if size < PIECE {
                next = self.watch.ready();
            }
        }
        piece
    }

    fn encode(&mut self, event: Event) -> Option<Bytes> {
        match event {
            // History moved on; the periodic bookmark says so.
            Event::Bookmark(_) => None,
            Event::InitialEnd(revision) => {
                self.told = revision;
                Some(line("BOOKMARK", &self.marker(revision, true)))
            }
            Event::Change(change) => {
                self.told = self.told.max(change.revision());
                Some(match &change {
                    Change::Added(object) => self.encoded("ADDED", object),
                    Change::Modified { new, .. } => self.encoded("MODIFIED", new),
                    // The last state carries the revision of its deletion.
                    Change::Deleted { last, revision } => {
                        self.encoded("DELETED", &last.draft().clone().commit(*revision))
                    }
                })
            }
        }
    }

    fn encoded(&mut self, event: &'static str, object: &Object) -> Bytes {
        let table_headers = matches!(self.sending.form, Form::Table(_)) && std::mem::take(&mut self.headers);
        let form = Encoding {
            event,
            version: self.served.index(),
            form: self.sending.form,
            include: self.sending.include,
            headers: table_headers,
            second: if matches!(self.sending.form, Form::Table(_)) { self.registry.now().as_second() } else { 0 },
        };
        let (registry, served, sending) = (&self.registry, &self.served, self.sending);
        let encode = || {
            let mut out = BytesMut::with_capacity(object.draft().body().len() + 80);
            out.put_slice(format!("{{\"type\":\"{event}\",\"object\":").as_bytes());
            match sending.form {
                Form::Table(version) => {
                    let rows = vec![registry.row(served, object, version, sending.include)];
                    let metadata = json!({"resourceVersion": object.revision.to_string()});
                    let table = table(&served.kind.columns, version, metadata, rows, table_headers);
                    serde_json::to_writer((&mut out).writer(), &table).expect("a value is always JSON");
                }
                form => out.put_slice(&registry.object_json(served, object, form, sending.include)),
            }
            out.put_slice(b"}\n");
            out.freeze()
        };
        self.encodings.get_or(object, form, encode)
    }

    fn bookmark(&mut self) -> Option<Bytes> {
        let revision = self.watch.revision();
        if revision <= self.told {
            return None;
        }
        self.told = revision;
        Some(line("BOOKMARK", &self.marker(revision, false)))
    }

    /// The object of a bookmark: of the right kind, with nothing but a revision.
    fn marker(&mut self, revision: u64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.sending.form {
            Form::Whole | Form::MetadataList(_) => (self.served.kind_name().to_owned(), self.served.api_version()),
            Form::Metadata(version) | Form::Table(version) => {
                ("PartialObjectMetadata".to_owned(), version.api_version().to_owned())
            }
        };
        let marker = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        match self.sending.form {
            Form::Table(version) => {
                let cells = vec![Value::Null; self.served.kind.columns.len()];
                let rows = vec![json!({"cells": cells, "object": marker})];
                let metadata = json!({"resourceVersion": revision.to_string()});
                table(&self.served.kind.columns, version, metadata, rows, std::mem::take(&mut self.headers))
            }
            _ => marker,
        }
    }
}

/// The event with which a watch ends before its time.
pub fn failure(status: &Status) -> Bytes {
    line("ERROR", &serde_json::to_value(status).expect("a status is always JSON"))
}

fn line(event: &str, object: &Value) -> Bytes {
    let mut out = BytesMut::new();
    serde_json::to_writer((&mut out).writer(), &json!({"type": event, "object": object}))
        .expect("a value is always JSON");
    out.put_u8(b'\n');
    out.freeze()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use jiff::Timestamp;

    use super::*;
    use crate::admit::Warnings;
    use crate::identity::{AllowAll, Everybody, User};
    use crate::path::Query;
    use crate::registry::Writer;
    use crate::registry::list::When;
    use crate::registry::select::Selection;
    use crate::server::{Server, ServerConfig};

    fn server(user: &User) -> Arc<Server> {
        Server::new(ServerConfig::new(
            store::memory::Memory::new(),
            kinds::registry(),
            Arc::new(Everybody(user.clone())),
            Arc::new(AllowAll),
            Arc::new(Timestamp::now),
            Arc::new(|out| out.fill(0)),
        ))
    }

    /// What happens to a resource from now on.
    async fn watched(server: &Server, resource: &str, bookmarks: bool, timeout: Duration) -> Events {
        let registry = &server.registry;
        let when = When::parse(&Query::parse("watch=true"), true).unwrap();
        let of = registry.catalog.find("", "v1", resource).unwrap();
        let watch = registry.watch(Selection::all(of, ""), &when).await.unwrap();
        let sending = Sending { form: Form::Whole, include: Include::default(), bookmarks, timeout };
        stream(watch, registry.clone(), Arc::default(), sending, CancellationToken::new())
    }

    /// Time passes only while everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_in_time_in_the_middle_of_a_storm() {
        let user = User::loopback("tester");
        let server = server(&user);
        let registry = &server.registry;
        let maps = registry.catalog.find("", "v1", "configmaps").unwrap();
        let warnings = Warnings::default();
        let by = Writer { user: &user, manager: "", create_refused: None, dry_run: false, warnings: &warnings };
        let timeout = Duration::from_secs(1);
        let events = watched(&server, "configmaps", false, timeout).await;
        let began = Instant::now();
        let storm = async {
            for n in 0..2000 {
                registry.create(maps, "default", json!({"metadata": {"name": format!("m{n}")}}), by).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = events.collect::<Vec<_>>() => {}
            () = storm => panic!("the storm is over, and the watch is not"),
        }
        assert!((timeout..2 * timeout).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_already_is_not_held_back() {
        let user = User::loopback("tester");
        let server = server(&user);
        let registry = &server.registry;
        let maps = registry.catalog.find("", "v1", "configmaps").unwrap();
        let warnings = Warnings::default();
        let by = Writer { user: &user, manager: "", create_refused: None, dry_run: false, warnings: &warnings };
        for n in 0..4 * BURST {
            let map = json!({"metadata": {"name": format!("m{n}")}, "data": {"text": "x".repeat(PIECE)}});
            registry.create(maps, "default", map, by).await.unwrap();
        }
        let events = watched(&server, "configmaps", false, BOOKMARKS).await;
        let began = Instant::now();
        // Two events in each.
        let pieces: Vec<Vec<u8>> =
            events.take(2 * BURST as usize).map(|piece: Vec<Bytes>| piece.concat()).collect().await;
        assert!(pieces.iter().all(|piece| piece.len() > PIECE && piece.ends_with(b"}\n")));
        assert_eq!(Instant::now(), began);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bookmark_is_recent_though_only_others_have_changed() {
        let user = User::loopback("tester");
        let server = server(&user);
        let registry = &server.registry;
        let maps = registry.catalog.find("", "v1", "configmaps").unwrap();
        let warnings = Warnings::default();
        let by = Writer { user: &user, manager: "", create_refused: None, dry_run: false, warnings: &warnings };
        let mut events = watched(&server, "secrets", true, 2 * BOOKMARKS).await;
        for n in 0..9 {
            let map = json!({"metadata": {"name": format!("m{n}")}});
            registry.create(maps, "default", map, by).await.unwrap();
        }
        let bookmark: Value = serde_json::from_slice(&events.next().await.unwrap().concat()).unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        let now = registry.store.snapshot().revision();
        assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], now.to_string());
    }

    #[tokio::test]
    async fn a_burst_goes_at_once_and_a_storm_at_its_pace() {
        let start = Instant::now();
        let mut pace = Pace { paid: start };
        for _ in 0..BURST {
            assert_eq!(pace.wait(start), None);
            pace.sent(start);
        }
        assert_eq!(pace.wait(start), Some(start + PACE));
        assert_eq!(pace.wait(start + PACE), None);
        pace.sent(start + PACE);
        assert_eq!(pace.wait(start + PACE), Some(start + 2 * PACE));
        // Who has been silent for long has a burst again, and no more.
        let later = start + 1000 * PACE;
        for _ in 0..BURST {
            assert_eq!(pace.wait(later), None);
            pace.sent(later);
        }
        assert_eq!(pace.wait(later), Some(later + PACE));
    }
}
