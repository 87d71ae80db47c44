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

pub mod events;
pub mod informer;
pub mod queue;
pub mod request;
pub mod tls;
pub mod toleration;
pub mod typed;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The time of day. A value, so that tests can run it.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(jiff::Timestamp::now)
}

/// How requests reach the API server, and as whom. One contract suite runs against each implementation.
pub trait Transport: Send + Sync + 'static {
    /// Answers with the object as written or read. A deletion that takes effect at once answers with the last state, or over
    /// the network with a `Status` that has neither name nor revision.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>>;

    /// The objects of `scope` at one revision, then every change after it.
    fn list_watch(&self, scope: Scope) -> BoxFuture<'_, Result<Watched, Status>>;
}

/// The objects of a scope at one revision, and every change after it.
pub type Watched = (Listing, Box<dyn Watch>);

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

    /// Tells how far what was returned up to a revision is still all there is, to those who cannot wait for [`next`](Self::next).
    fn progress(&self) -> Progress {
        Arc::new(|revision| revision)
    }
}

/// Of a revision, the latest at which what is watched is as it was then.
pub type Progress = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

/// A transport with an identity, cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

/// A served resource type: what a request names beside namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pub resource: GroupResource,
    /// Such as `v1`.
    pub version: &'static str,
}

impl Resource {
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Self { resource: GroupResource::new(group, resource), version }
    }

    /// The resource type of a typed struct.
    pub const fn of<K: k8s_openapi::Resource>() -> Self {
        Self::new(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT)
    }

    /// Every object of this type, in all namespaces.
    pub fn everywhere(&self) -> Scope {
        Scope {
            resource: self.resource.clone(),
            version: self.version,
            namespace: None,
            field_selector: String::new(),
            label_selector: String::new(),
        }
    }

    fn call(&self, verb: Verb, namespace: &str, name: &str, subresource: Option<&'static str>) -> Call {
        Call {
            verb,
            resource: self.resource.clone(),
            version: self.version,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource,
        }
    }
}

/// The requests on untyped objects. Those on k8s-openapi's structs are in [`typed`].
///
/// All fail with the server's [`Status`], or with one of reason `ServiceUnavailable` or `Timeout` when it cannot be reached.
impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    pub async fn call(&self, call: Call) -> Result<Arc<Object>, Status> {
        self.transport.call(call).await
    }

    pub async fn list_watch(&self, scope: Scope) -> Result<Watched, Status> {
        self.transport.list_watch(scope).await
    }

    /// The objects of `scope` at one revision.
    pub async fn list_objects(&self, scope: Scope) -> Result<Listing, Status> {
        Ok(self.transport.list_watch(scope).await?.0)
    }

    pub async fn get_object(&self, of: &Resource, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.call(of.call(Verb::Get, namespace, name, None)).await
    }

    pub async fn create_object(&self, of: &Resource, namespace: &str, object: Value) -> Result<Arc<Object>, Status> {
        self.call(of.call(Verb::Create(object), namespace, "", None)).await
    }

    /// Replaces the object that `object.metadata` names; fails with `Conflict` when its resourceVersion is not the latest.
    pub async fn update_object(&self, of: &Resource, object: Value) -> Result<Arc<Object>, Status> {
        self.put(of, object, None).await
    }

    /// As [`Client::update_object`] for a sub-resource such as `status` or `finalize`.
    pub async fn update_subresource(
        &self,
        of: &Resource,
        subresource: &'static str,
        object: Value,
    ) -> Result<Arc<Object>, Status> {
        self.put(of, object, Some(subresource)).await
    }

    async fn put(
        &self,
        of: &Resource,
        object: Value,
        subresource: Option<&'static str>,
    ) -> Result<Arc<Object>, Status> {
        let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (field("namespace"), field("name"));
        self.call(of.call(Verb::Update(object), &namespace, &name, subresource)).await
    }

    /// `subresource` is for patches of `status` and the like.
    pub async fn patch_object(
        &self,
        of: &Resource,
        namespace: &str,
        name: &str,
        subresource: Option<&'static str>,
        kind: PatchType,
        patch: Value,
    ) -> Result<Arc<Object>, Status> {
        self.call(of.call(Verb::Patch(kind, patch), namespace, name, subresource)).await
    }

    /// Posts to a sub-resource such as `binding`, `eviction` or `token`; the answer is the sub-resource's reply.
    pub async fn post(
        &self,
        of: &Resource,
        namespace: &str,
        name: &str,
        subresource: &'static str,
        body: Value,
    ) -> Result<Arc<Object>, Status> {
        self.call(of.call(Verb::Create(body), namespace, name, Some(subresource))).await
    }

    pub async fn delete_object(
        &self,
        of: &Resource,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Arc<Object>, Status> {
        self.call(of.call(Verb::Delete(options), namespace, name, None)).await
    }
}
