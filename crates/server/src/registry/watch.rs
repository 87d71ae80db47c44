//! Watches: a place in the shared history, seen through a selection.
//!
//! Source: apiserver `pkg/storage/cacher`, `pkg/endpoints/handlers/watch.go`; KEP-3157 (WatchList).

use std::sync::Arc;
use std::vec::IntoIter;

use api::object::{Change, Object};
use api::status::Status;
use client::Progress;
use store::Cursor;

use super::list::When;
use super::select::Selection;
use super::{Registry, store_failure};

/// What a watch reports next.
#[derive(Debug)]
pub enum Event {
    Change(Change),
    /// Everything up to this revision has been reported.
    Bookmark(u64),
    /// The initial state has been reported, as of this revision.
    InitialEnd(u64),
}

/// A running watch. It holds no buffer but what it has yet to report.
pub struct Watch {
    registry: Arc<Registry>,
    selection: Selection,
    initial: IntoIter<Arc<Object>>,
    initial_end: Option<u64>,
    /// As the cursor returned them: some may not be selected.
    pending: IntoIter<Change>,
    cursor: Box<dyn Cursor>,
}

impl Registry {
    /// Begins a watch.
    ///
    /// # Errors
    /// 410 when the place to begin at is compacted away, 504 when it is not there yet.
    pub async fn watch(self: &Arc<Self>, selection: Selection, when: &When) -> Result<Watch, Status> {
        let revision = when.resource_version.unwrap_or(0);
        let snapshot = self.at_least(revision).await?;
        let initial = when.send_initial_events.unwrap_or(revision == 0);
        let after = if initial || revision == 0 { snapshot.revision() } else { revision };
        let objects: Vec<_> =
            if initial { self.select(&snapshot, &selection, None).cloned().collect() } else { Vec::new() };
        let mut watch = self.watch_after(selection, after)?;
        watch.initial = objects.into_iter();
        watch.initial_end = (when.send_initial_events == Some(true) && when.bookmarks).then_some(after);
        Ok(watch)
    }

    /// Begins a watch of what happens after a revision that this server has reached.
    ///
    /// # Errors
    /// 410 when it is compacted away.
    pub fn watch_after(self: &Arc<Self>, selection: Selection, after: u64) -> Result<Watch, Status> {
        let cursor = self.store.watch(selection.prefix(), after).map_err(|error| expired(&error))?;
        let (initial, pending) = (IntoIter::default(), IntoIter::default());
        Ok(Watch { registry: self.clone(), selection, initial, initial_end: None, pending, cursor })
    }
}

impl Watch {
    /// Waits for the next event. A bookmark is returned when nothing of what was looked at is selected.
    ///
    /// Cancellation safe.
    ///
    /// # Errors
    /// 410 when the place has been compacted away.
    pub async fn next(&mut self) -> Result<Event, Status> {
        if let Some(event) = self.ready() {
            return Ok(event);
        }
        self.pending = self.cursor.next().await.map_err(|error| expired(&error))?.into_iter();
        Ok(self.ready().unwrap_or(Event::Bookmark(self.cursor.revision())))
    }

    /// The next event, if it is there already.
    pub fn ready(&mut self) -> Option<Event> {
        if let Some(object) = self.initial.next() {
            return Some(Event::Change(Change::Added(object)));
        }
        // Nor is the room kept that it took.
        self.initial = IntoIter::default();
        if let Some(revision) = self.initial_end.take() {
            return Some(Event::InitialEnd(revision));
        }
        let next = self.pending.by_ref().find_map(|change| self.registry.seen(&self.selection, change));
        if next.is_none() {
            self.pending = IntoIter::default();
        }
        next.map(Event::Change)
    }

    /// Whether something is there to be reported, or at least looked at.
    pub fn is_ready(&self) -> bool {
        self.initial.len() > 0 || self.initial_end.is_some() || self.pending.len() > 0
    }

    /// What is watched.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The revision up to which everything has been reported, once nothing is [`ready`](Self::ready).
    pub fn revision(&self) -> u64 {
        self.cursor.revision()
    }

    /// Tells of a revision how far nothing in reach of the selection has changed since.
    pub fn progress(&self) -> Progress {
        let (store, prefix) = (self.registry.store.clone(), self.selection.prefix().to_owned());
        Arc::new(move |revision| store.unchanged(&prefix, revision))
    }
}

/// The store's error as a watch reports it.
pub fn expired(error: &store::Error) -> Status {
    match error {
        store::Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        other => store_failure(other),
    }
}
