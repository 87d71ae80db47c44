//! A watch as a stream of JSON lines. Each event is encoded once for all watchers that see it in the same form.
//!
//! The stream is pulled by the connection: a slow client is asked for nothing and holds nothing but its place.
//! Source: apiserver `pkg/endpoints/handlers/watch.go`.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::key::Key;
use api::object::{Change, Object};
use api::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::negotiate::Form;
use crate::encode::{Include, table};
use crate::registry::Registry;
use crate::registry::catalog::Served;
use crate::registry::watch::{Event, Watch};

/// Upstream's interval of bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Ready events are sent in one piece up to this size.
const PIECE: usize = 64 * 1024;

/// Bytes of encodings kept for other watchers: the events that several watchers have just been woken for.
const KEPT: usize = 1024 * 1024;

/// Encodings of recent events, shared by all watchers.
#[derive(Default)]
pub struct Encodings(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    by_key: HashMap<EncodingKey, Bytes>,
    order: VecDeque<EncodingKey>,
    bytes: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct EncodingKey {
    revision: u64,
    key: Key,
    event: &'static str,
    version: usize,
    form: Form,
    include: Include,
    headers: bool,
    /// For tables, whose ages are as of now.
    second: i64,
}

impl Encodings {
    fn get_or(&self, key: EncodingKey, encode: impl FnOnce() -> Bytes) -> Bytes {
        let lock = || self.0.lock().expect("no holder of this lock can panic");
        if let Some(bytes) = lock().by_key.get(&key) {
            return bytes.clone();
        }
        // Two watchers may encode the same event at the same time; neither waits for the other.
        let bytes = encode();
        let mut recent = lock();
        if recent.by_key.insert(key.clone(), bytes.clone()).is_none() {
            recent.order.push_back(key);
            recent.bytes += bytes.len();
        }
        while recent.bytes > KEPT
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.bytes -= recent.by_key.remove(&oldest).map_or(0, |bytes| bytes.len());
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
    bookmark: Instant,
    /// The last revision that the client knows of.
    told: u64,
    /// Whether the next table needs its column headers.
    headers: bool,
    shutdown: CancellationToken,
    over: bool,
}

/// What woke the stream.
enum Woken {
    Event(Result<Event, Status>),
    Bookmark,
    Deadline,
}

/// The lines of a watch until its time is over, the server stops, or its place is compacted away.
pub fn stream(
    watch: Watch,
    registry: Arc<Registry>,
    encodings: Arc<Encodings>,
    sending: Sending,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let now = Instant::now();
    let sender = Sender {
        served: watch.selection().served.clone(),
        watch,
        registry,
        encodings,
        sending,
        deadline: now + sending.timeout,
        bookmark: now + BOOKMARKS,
        told: 0,
        headers: true,
        shutdown,
        over: false,
    };
    futures_util::stream::unfold(
        sender,
        |mut sender| async move { sender.next().await.map(|bytes| (Ok(bytes), sender)) },
    )
}

impl Sender {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            let woken = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => Woken::Deadline,
                () = tokio::time::sleep_until(self.deadline) => Woken::Deadline,
                () = tokio::time::sleep_until(self.bookmark), if self.sending.bookmarks => Woken::Bookmark,
                event = self.watch.next() => Woken::Event(event),
            };
            if let Some(bytes) = self.apply(woken) {
                return Some(bytes);
            }
        }
    }

    fn apply(&mut self, woken: Woken) -> Option<Bytes> {
        match woken {
            Woken::Event(Ok(event)) => self.piece(event),
            Woken::Event(Err(status)) => {
                self.over = true;
                Some(failure(&status))
            }
            Woken::Bookmark => {
                self.bookmark = Instant::now() + BOOKMARKS;
                self.bookmark()
            }
            Woken::Deadline => {
                self.over = true;
                // The client resumes from here instead of from its last event.
                self.sending.bookmarks.then(|| self.bookmark()).flatten()
            }
        }
    }

    /// The event and all that are ready behind it.
    fn piece(&mut self, first: Event) -> Option<Bytes> {
        let first = self.encode(first)?;
        let Some(second) = self.watch.ready() else { return Some(first) };
        let mut piece = BytesMut::from(&first[..]);
        let mut next = Some(second);
        while let Some(event) = next.take() {
            if let Some(bytes) = self.encode(event) {
                piece.put_slice(&bytes);
            }
            if piece.len() < PIECE {
                next = self.watch.ready();
            }
        }
        Some(piece.freeze())
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
                let revision = change.revision();
                self.told = self.told.max(revision);
                let (event, object) = match &change {
                    Change::Added(object) => ("ADDED", object.clone()),
                    Change::Modified { new, .. } => ("MODIFIED", new.clone()),
                    // The last state carries the revision of its deletion.
                    Change::Deleted { last, revision } => ("DELETED", last.draft().clone().commit(*revision)),
                };
                Some(self.encoded(event, &object))
            }
        }
    }

    fn encoded(&mut self, event: &'static str, object: &Object) -> Bytes {
        let table_headers = matches!(self.sending.form, Form::Table(_)) && std::mem::take(&mut self.headers);
        let key = EncodingKey {
            revision: object.revision,
            key: object.key().clone(),
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
                    let table = table(served, version, metadata, rows, table_headers);
                    serde_json::to_writer((&mut out).writer(), &table).expect("a value is always JSON");
                }
                form => out.put_slice(&registry.object_json(served, object, form, sending.include)),
            }
            out.put_slice(b"}\n");
            out.freeze()
        };
        self.encodings.get_or(key, encode)
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
                table(&self.served, version, metadata, rows, std::mem::take(&mut self.headers))
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
