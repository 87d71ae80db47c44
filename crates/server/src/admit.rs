//! The shape of admission: mutating plugins, then validation, then validating plugins, all on the object as it will land.
//!
//! The chain runs inside the optimistic retry, so a patch is admitted on the object that it is applied to. A plugin sees
//! the storage version of objects and the state they are admitted against. Source: apiserver
//! `pkg/admission/{interfaces,attributes,chain}.go`.

use std::sync::Mutex;

use api::key::GroupResource;
use api::status::Status;
use kinds::kind::Kind;
use serde_json::Value;
use store::Snapshot;

use crate::identity::{BoxFuture, User};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

/// What a plugin may know about a request beside the object itself.
pub struct AdmissionAttributes<'a> {
    pub operation: Operation,
    pub user: &'a User,
    pub kind: &'a Kind,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped objects; for a Namespace its own name, as upstream has it.
    pub namespace: &'a str,
    /// Empty on create with `generateName` while mutating plugins run.
    pub name: &'a str,
    /// The stored object, on update and delete.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// The state that the request is admitted against.
    pub snapshot: &'a Snapshot,
    pub warnings: &'a Warnings,
}

impl AdmissionAttributes<'_> {
    /// The resource that the object is stored under.
    pub fn resource(&self) -> &GroupResource {
        &self.kind.names.resource
    }

    /// Whether the request is for this resource, not for a sub-resource of it.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.resource().group == group && self.resource().resource == resource
    }

    /// A refusal in upstream's words. `object` gives the name where the request has none.
    pub fn forbidden(&self, object: Option<&Value>, why: impl std::fmt::Display) -> Status {
        let metadata = |field: &str| object?.get("metadata")?.get(field)?.as_str().filter(|s| !s.is_empty());
        let name = match self.name {
            "" => metadata("name").or_else(|| metadata("generateName")).unwrap_or("Unknown"),
            name => name,
        };
        Status::forbidden(self.resource(), name, why)
    }
}

/// Collects what becomes `Warning` headers, without repetitions.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Adds a text once.
    pub fn add(&self, text: impl Into<String>) {
        let (mut texts, text) = (self.0.lock().expect("no holder of this lock can panic"), text.into());
        if !texts.contains(&text) {
            texts.push(text);
        }
    }

    /// Returns what was added, in order, and forgets it.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no holder of this lock can panic"))
    }
}

/// One admission plugin, such as namespace lifecycle.
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, such as `NamespaceLifecycle`.
    fn name(&self) -> &'static str;

    /// Changes the object, or refuses it. Runs twice on one object, so it must be idempotent.
    ///
    /// # Errors
    /// What the user gets instead of an answer; usually [`AdmissionAttributes::forbidden`].
    fn admit<'a>(
        &'a self,
        _at: &'a AdmissionAttributes<'a>,
        _object: &'a mut Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }

    /// Refuses the object as it will be stored; `object` is `None` on delete and connect.
    ///
    /// # Errors
    /// As [`Plugin::admit`].
    fn validate<'a>(
        &'a self,
        _at: &'a AdmissionAttributes<'a>,
        _object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async { Ok(()) })
    }
}

/// The plugins, in upstream's order.
#[derive(Default)]
pub struct Chain(pub Vec<Box<dyn Plugin>>);

impl Chain {
    /// Runs the mutating half. What one plugin changed, an earlier one may have an opinion on: all run twice, which changes nothing
    /// where nothing was changed, and costs less than to find that out.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(&self, at: &AdmissionAttributes<'_>, object: &mut Value) -> Result<(), Status> {
        for plugin in self.0.iter().chain(&self.0) {
            plugin.admit(at, object).await?;
        }
        Ok(())
    }

    /// Runs the validating half.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, at: &AdmissionAttributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        for plugin in &self.0 {
            plugin.validate(at, object).await?;
        }
        Ok(())
    }
}
