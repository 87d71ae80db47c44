//! Access to the API for everything that is not the API server: one client, in process or over TLS.
//!
//! Controllers, scheduler, node and feed hold a [`Client`] and never see the store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use api::key::GroupResource;
use api::object::{Change, Object};
use api::status::Status;
use serde_json::Value;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How requests reach the API server, and as whom. One contract suite runs against each implementation.
pub trait Transport: Send + Sync + 'static {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>>;

    /// The objects of `scope` at one revision, then every change after it.
    fn list_watch(&self, scope: Scope) -> BoxFuture<'_, Result<(Listing, Box<dyn Watch>), Status>>;
}

/// One request for one object (or for a review, whose answer is the reply's object).
#[derive(Clone, Debug)]
pub struct Call {
    pub verb: Verb,
    pub resource: GroupResource,
    /// Such as `v1`.
    pub version: &'static str,
    /// Empty for cluster-scoped resources.
    pub namespace: String,
    /// Empty for `Create`.
    pub name: String,
    /// Such as `status` or `binding`.
    pub subresource: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub enum Verb {
    Get,
    Create(Value),
    Update(Value),
    Patch(PatchType, Value),
    Delete(DeleteOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// What a list or watch covers.
#[derive(Clone, Debug)]
pub struct Scope {
    pub resource: GroupResource,
    pub version: &'static str,
    /// All namespaces when `None`.
    pub namespace: Option<String>,
    /// In query form, such as `spec.nodeName=a`; empty for everything.
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Clone, Debug)]
pub struct Listing {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
}

pub trait Watch: Send {
    /// Waits for changes in order. An object that enters the selection is `Added`, one that leaves it `Deleted`.
    ///
    /// Cancellation safe.
    ///
    /// # Errors
    /// `Expired` when the place is compacted away: list again.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>>;

    /// The revision up to which everything has been returned.
    fn revision(&self) -> u64;
}

/// A transport with an identity, cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }
}
