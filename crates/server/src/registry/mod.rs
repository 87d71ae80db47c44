//! The generic registry: one implementation of every verb, which knows kinds only by what they declare.
//!
//! Source: apiserver `pkg/registry/generic/registry/store.go` and `pkg/registry/rest`.

use std::sync::Arc;
use std::time::Duration;

use api::field;
use api::key::Key;
use api::names;
use api::object::{Draft, Object, SCHEMA};
use api::status::Status;
use api::validation;
use jiff::Timestamp;
use kinds::kind::Strategy;
use serde_json::Value;
use store::{Snapshot, Store};

use crate::admit::{AdmissionAttributes, Chain, Operation, Warnings};
use crate::hooks::{Allocator, Clock, Reviewer, Rng, TokenIssuer, Unallocated};
use crate::identity::User;
use crate::registry::catalog::{Catalog, Served};

pub mod actions;
pub mod catalog;
pub mod claims;
pub mod create;
pub mod delete;
pub mod list;
pub mod metadata;
pub mod ownership;
pub mod scale;
pub mod select;
pub mod update;
pub mod watch;

/// What every verb needs: the store, the kinds, and who has a say.
pub struct Registry {
    pub store: Arc<dyn Store>,
    pub catalog: Catalog,
    pub admission: Chain,
    pub reviewer: Arc<dyn Reviewer>,
    pub tokens: Arc<dyn TokenIssuer>,
    pub clock: Clock,
    pub rng: Rng,
    pub allocators: Vec<Box<dyn Allocator>>,
}

/// Who writes, and how.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub user: &'a User,
    /// The name under which what is written is owned; empty is unknown.
    pub manager: &'a str,
    /// Why the user may not create what a write to an absent name would.
    pub create_refused: Option<&'a Status>,
    pub dry_run: bool,
    pub warnings: &'a Warnings,
}

/// The object that a request names.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub served: &'a Served,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub name: &'a str,
}

/// How long a request waits for a revision that this server has not seen yet.
const REVISION_WAIT: Duration = Duration::from_secs(3);

impl<'a> Place<'a> {
    /// Takes the namespace of a path, which for an object outside of any is no part of its name.
    pub fn new(served: &'a Served, namespace: &'a str, name: &'a str) -> Self {
        Self { served, namespace: if served.is_namespaced() { namespace } else { "" }, name }
    }

    /// Where the object is stored.
    pub fn key(&self) -> Key {
        Key::new(&self.served.kind.names.resource, self.namespace, self.name)
    }

    /// 404 for this object.
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.served.group_resource(), self.name)
    }

    /// 409 for this object.
    pub fn conflict(&self, why: impl std::fmt::Display) -> Status {
        Status::conflict(&self.served.group_resource(), self.name, why)
    }

    /// 422 for this object.
    pub fn invalid(&self, errors: &[api::field::Error]) -> Status {
        // By the group that it is stored in: an Event is one of the core's, whoever sent it.
        Status::invalid(&self.served.kind.names.resource.group, self.served.kind_name(), self.name, errors)
    }

    /// Finds the object.
    ///
    /// # Errors
    /// 404 when it does not exist, 400 for a name that no object can have.
    pub fn find<'s>(&self, snapshot: &'s Snapshot) -> Result<&'s Arc<Object>, Status> {
        if self.name.is_empty() {
            return Err(Status::bad_request("Name parameter required."));
        }
        // Such a name must not reach the key's syntax.
        let wrong = names::is_path_segment_name(self.name);
        if !wrong.is_empty() {
            let name = field::quoted(self.name);
            return Err(Status::bad_request(format!("Name parameter invalid: {name}: {}", wrong.join(";"))));
        }
        if self.namespace.contains('/') {
            return Err(self.not_found());
        }
        snapshot.get(&self.key()).ok_or_else(|| self.not_found())
    }
}

impl Registry {
    /// The time by the clock that was given.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Reads one object that is not older than `revision`; 0 is any.
    ///
    /// # Errors
    /// 404, or 504 when the revision does not arrive.
    pub async fn get(&self, at: Place<'_>, revision: u64) -> Result<Arc<Object>, Status> {
        let snapshot = self.at_least(revision).await?;
        #[cfg(feature = "planted")]
        if planted::every(planted::Bug::StaleGet, 10) {
            let earlier = self.store.snapshot_at(snapshot.revision().saturating_sub(8)).unwrap_or(snapshot);
            return at.find(&earlier).cloned();
        }
        at.find(&snapshot).cloned()
    }

    /// The current state, once it has reached `revision`.
    ///
    /// # Errors
    /// 504 when that takes too long, as it does for a revision of another cluster.
    pub async fn at_least(&self, revision: u64) -> Result<Snapshot, Status> {
        let snapshot = self.store.snapshot();
        if snapshot.revision() >= revision {
            return Ok(snapshot);
        }
        // Both ways of not arriving end in the comparison below.
        let _ = tokio::time::timeout(REVISION_WAIT, self.store.wait_until(revision)).await;
        let snapshot = self.store.snapshot();
        if snapshot.revision() >= revision { Ok(snapshot) } else { Err(too_new(revision, snapshot.revision())) }
    }

    /// The object as this build understands it, in its storage version.
    pub fn value(&self, served: &Served, object: &Object) -> Value {
        let mut value = object.value();
        if object.draft().schema != SCHEMA {
            (served.kind.strategy.default)(&mut value);
        }
        value
    }

    /// What [`Object::outline`] has of it.
    pub fn outline(&self, served: &Served, object: &Object) -> Value {
        if object.draft().schema == SCHEMA { object.outline() } else { self.value(served, object) }
    }

    /// Fills in what the cluster hands out, such as a service's addresses.
    pub(crate) fn allocate(
        &self,
        at: Place<'_>,
        object: &mut Value,
        old: Option<&Value>,
        snapshot: &Snapshot,
        by: Writer<'_>,
    ) -> Result<(), Status> {
        for allocator in &self.allocators {
            allocator.allocate(&at.served.kind, object, old, snapshot, by.dry_run).map_err(|error| match error {
                Unallocated::Invalid(errors) => at.invalid(&errors),
                Unallocated::Exhausted(why) => Status::internal(why),
            })?;
        }
        Ok(())
    }

    pub(crate) fn attributes<'a>(
        &self,
        operation: Operation,
        at: Place<'a>,
        subresource: &'a str,
        old: Option<&'a Value>,
        snapshot: &'a Snapshot,
        by: Writer<'a>,
    ) -> AdmissionAttributes<'a> {
        // A namespace counts as being in itself.
        let itself =
            at.served.kind.names.resource.group.is_empty() && at.served.kind.names.resource.resource == "namespaces";
        AdmissionAttributes {
            operation,
            user: by.user,
            kind: &at.served.kind,
            subresource,
            namespace: if itself { at.name } else { at.namespace },
            name: at.name,
            old,
            dry_run: by.dry_run,
            snapshot,
            warnings: by.warnings,
        }
    }
}

/// 504 for a revision that is not there yet.
pub fn too_new(requested: u64, current: u64) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {requested}, current: {current}"));
    let cause = api::status::Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    };
    status.details =
        Some(Box::new(api::status::Details { causes: vec![cause], retry_after_seconds: 1, ..Default::default() }));
    status
}

/// An error of the store that no retry mends.
pub fn store_failure(error: &store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => Status::expired(format!("too old resource version: {error}")),
        store::Error::Future { requested, current } => too_new(*requested, *current),
        store::Error::Closed => {
            Status::unavailable("the store is closed after an earlier failure; see the server's log")
        }
        other => Status::internal(api::chain::chain(other)),
    }
}

/// Whether a finalizer needs no domain in its name.
///
/// Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidateObjectMeta`, which is not called for these.
fn takes_any_finalizer(served: &Served) -> bool {
    match &*served.version().group {
        "admissionregistration.k8s.io" | "coordination.k8s.io" | "node.k8s.io" => true,
        group => group.is_empty() && served.kind_name() == "Event",
    }
}

/// Every error at once: of the metadata, then of the rest; each one once, though more than one rule may find it.
pub(crate) fn errors(served: &Served, strategy: &Strategy, object: &Value, old: Option<&Value>) -> Vec<field::Error> {
    let (metadata, path) = (&object["metadata"], field::Path::new("metadata"));
    let version = served.version();
    let mut rest = (version.validate.as_ref().unwrap_or(&strategy.validate))(object, old);
    if version.rules_first && old.is_none() && !rest.is_empty() {
        return once(rest);
    }
    let rule = version.name.unwrap_or(served.kind.name);
    let mut all = validation::validate_object_meta(metadata, served.is_namespaced(), rule, &path);
    if let Some(old) = old {
        all.extend(validation::validate_object_meta_update(metadata, &old["metadata"], &path));
    }
    if !takes_any_finalizer(served) {
        all.extend(validation::validate_kube_finalizers(&metadata["finalizers"], &path.child("finalizers")));
    }
    all.append(&mut rest);
    once(all)
}

fn once(all: Vec<field::Error>) -> Vec<field::Error> {
    let mut errors: Vec<field::Error> = Vec::new();
    for error in all {
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    errors
}

/// The drafts of objects that were validated always parse.
pub(crate) fn draft(key: Key, object: Value) -> Result<Draft, Status> {
    Draft::new(key, object).map_err(|error| Status::bad_request(format!("the object cannot be stored: {error}")))
}
