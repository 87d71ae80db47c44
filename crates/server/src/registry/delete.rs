//! Deleting objects: at once, gracefully, or when the last finalizer is gone.
//!
//! Source: apiserver `pkg/registry/generic/registry/store.go` (`Delete`), `pkg/registry/rest/delete.go`; kubernetes
//! `pkg/registry/core/namespace/storage/storage.go`.

use std::sync::Arc;

use api::field;
use api::key::GroupResource;
use api::object::Object;
use api::status::Status;
use client::Propagation;
use jiff::{SignedDuration, Timestamp};
use kinds::kind::Kind;
use serde_json::{Value, json};
use store::{Compare, Op, Snapshot};

use super::create::Failed;
use super::select::Selection;
use super::update::{finalizes, precondition_uid};
use super::{Place, Registry, Writer, claims, draft, metadata};
use crate::admit::Operation;

/// Makes the garbage collector release the dependents before the object goes.
pub const ORPHAN: &str = "orphan";
/// Makes the garbage collector delete the dependents before the object goes.
pub const FOREGROUND: &str = "foregroundDeletion";

/// A deletion's wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// What a deletion did.
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Arc<Object>),
    /// The object is marked and waits for its grace period, its finalizers or its contents.
    Pending(Arc<Object>),
}

impl Deleted {
    /// The object, or its last state.
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Pending(object) => object,
        }
    }
}

/// What a deletion does to the object that it finds.
enum Step {
    /// With its last state, where that is not the one that was found.
    Remove(Option<Value>),
    Mark(Value),
    /// It is being deleted already, and no faster than before.
    Leave,
}

impl Options {
    /// Reads a DeleteOptions object.
    ///
    /// # Errors
    /// 400 for fields of a wrong type, 422 for values that are none of the allowed ones.
    pub fn parse(body: &Value) -> Result<Self, Status> {
        if !body.is_object() && !body.is_null() {
            return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        let kind = body["kind"].as_str().unwrap_or_default();
        if !["", "DeleteOptions"].contains(&kind) {
            let version = body["apiVersion"].as_str().filter(|version| !version.is_empty()).unwrap_or("v1");
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\""
            )));
        }
        let text = |value: &Value, field: &str| match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(Status::bad_request(format!("DeleteOptions: {field} must be a string"))),
        };
        let mut errors = Vec::new();
        let mut propagation = match text(&body["propagationPolicy"], "propagationPolicy")?.as_deref() {
            None | Some("") => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let path = field::Path::new("propagationPolicy");
                errors.push(field::Error::not_supported(&path, other, &["Foreground", "Background", "Orphan", "nil"]));
                None
            }
        };
        if let Some(orphan) = body["orphanDependents"].as_bool() {
            if propagation.is_some() {
                errors.push(field::Error::invalid(
                    &field::Path::new("propagationPolicy"),
                    body["propagationPolicy"].clone(),
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            propagation = Some(if orphan { Propagation::Orphan } else { Propagation::Background });
        }
        let dry_run = match &body["dryRun"] {
            Value::Null => false,
            Value::Array(items) => {
                if items.iter().any(|item| item != "All") {
                    errors.push(field::Error::not_supported(&field::Path::new("dryRun"), items.clone(), &["All"]));
                }
                !items.is_empty()
            }
            _ => return Err(Status::bad_request("DeleteOptions: dryRun must be a list of strings")),
        };
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        let grace_period_seconds = match &body["gracePeriodSeconds"] {
            Value::Null => None,
            value => Some(value.as_i64().ok_or_else(|| {
                let what = api::schema::json_kind(value);
                Status::bad_request(format!(
                    "json: cannot unmarshal {what} into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
                ))
            })?),
        };
        Ok(Self {
            grace_period_seconds,
            uid: text(&body["preconditions"]["uid"], "preconditions.uid")?,
            resource_version: text(&body["preconditions"]["resourceVersion"], "preconditions.resourceVersion")?,
            propagation,
            dry_run,
        })
    }
}

impl Registry {
    /// Deletes the object at `at`.
    ///
    /// # Errors
    /// 404, 409 when a precondition does not hold, and what admission refuses.
    pub async fn delete(&self, at: Place<'_>, options: &Options, by: Writer<'_>) -> Result<Deleted, Status> {
        loop {
            let snapshot = self.store.snapshot();
            let current = at.find(&snapshot)?.clone();
            match self.delete_once(at, options, &snapshot, &current, by).await {
                Ok(deleted) => return Ok(deleted),
                Err(Failed::Refused(status)) => return Err(status),
                // A precondition on the revision fails in the next round.
                Err(Failed::Raced | Failed::Exists(_)) => {}
            }
        }
    }

    async fn delete_once(
        &self,
        at: Place<'_>,
        options: &Options,
        snapshot: &Snapshot,
        current: &Arc<Object>,
        by: Writer<'_>,
    ) -> Result<Deleted, Failed> {
        let kind = &at.served.kind;
        let uid = &current.meta().uid;
        if let Some(wanted) = options.uid.as_ref().filter(|wanted| *wanted != uid) {
            if finalizes(kind) {
                return Err(at.conflict(precondition_uid(wanted, uid)).into());
            }
            return Err(outdated(at, "UID", wanted, uid, "deleted and then recreated").into());
        }
        let revision = current.revision.to_string();
        if let Some(wanted) = options.resource_version.as_ref().filter(|wanted| **wanted != revision) {
            if finalizes(kind) {
                return Err(at
                    .conflict(format!(
                        "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {revision}"
                    ))
                    .into());
            }
            return Err(outdated(at, "ResourceVersion", wanted, &revision, "modified").into());
        }
        let old = self.value(at.served, current);
        let attributes = self.attributes(Operation::Delete, at, "", Some(&old), snapshot, by);
        self.admission.validate(&attributes, None).await?;

        let key = at.key();
        let mut compares = vec![Compare::Revision(key.clone(), current.revision)];
        let mut ops = Vec::new();
        match self.step(at, &old, options) {
            Step::Leave => Ok(Deleted::Pending(current.clone())),
            Step::Mark(new) => {
                ops.push(Op::Put(draft(key, new)?));
                Ok(Deleted::Pending(self.commit(compares, ops, by.dry_run, current.revision).await?))
            }
            Step::Remove(last) => {
                let last = last.map_or_else(|| Ok(current.draft().clone()), |last| draft(key.clone(), last))?;
                if by.dry_run {
                    return Ok(Deleted::Gone(last.commit(current.revision)));
                }
                claims::change(kind, &key, Some(&old), None, snapshot, &mut compares, &mut ops)
                    .map_err(|taken| at.invalid(&[taken]))?;
                ops.insert(0, Op::Delete(key));
                let committed = self.commit_all(compares, ops).await?;
                // The last state carries the revision of its deletion, as the watch event does.
                Ok(Deleted::Gone(last.commit(committed.revision)))
            }
        }
    }

    fn step(&self, at: Place<'_>, old: &Value, options: &Options) -> Step {
        let kind = &at.served.kind;
        let now = self.now();
        let mut new = old.clone();
        // Nothing belongs to what goes by itself: upstream has no garbage collection of events.
        let is_owner = kind.ttl.is_none();
        let propagation = options.propagation.or_else(|| default_propagation(kind, old)).filter(|_| is_owner);
        let deleting = !old["metadata"]["deletionTimestamp"].is_null();
        if finalizes(kind) {
            let contents = old["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
            if !deleting {
                set_finalizers(&mut new, propagation);
                mark(&mut new, now, None);
                new["status"]["phase"] = "Terminating".into();
                return Step::Mark(new);
            }
            if contents {
                return Step::Leave;
            }
        }
        let requested = options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
        let granted = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        let graceful = match &kind.grace {
            Some(_) if deleting && granted != 0 => match requested {
                Some(seconds) if seconds < granted => Some(seconds),
                // Only a shorter period changes anything.
                _ => return Step::Leave,
            },
            Some(grace) if !deleting => Some(grace(old, requested)),
            _ => None,
        };
        set_finalizers(&mut new, propagation);
        let finalizers = new["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        match graceful {
            Some(seconds) if seconds > 0 || finalizers => {
                mark_gracefully(&mut new, now, seconds, granted);
                Step::Mark(new)
            }
            _ if finalizers => {
                mark(&mut new, now, Some(0));
                if new == *old { Step::Leave } else { Step::Mark(new) }
            }
            Some(seconds) => {
                mark_gracefully(&mut new, now, seconds, granted);
                Step::Remove(Some(new))
            }
            None => Step::Remove(None),
        }
    }

    /// Deletes what a selection covers, page by page, and returns what was found.
    ///
    /// # Errors
    /// The first refusal; what was deleted before it stays deleted.
    pub async fn delete_collection(
        &self,
        selection: &Selection,
        options: &Options,
        by: Writer<'_>,
    ) -> Result<(u64, Vec<Arc<Object>>), Status> {
        let snapshot = self.store.snapshot();
        let found: Vec<Arc<Object>> = self.select(&snapshot, selection, None).cloned().collect();
        for object in &found {
            let at =
                Place { served: &selection.served, namespace: object.key().namespace(), name: object.key().name() };
            match self.delete(at, options, by).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        Ok((snapshot.revision(), found))
    }
}

/// Source: apiserver `pkg/registry/generic/registry/store.go`, `shouldOrphanDependents`.
fn default_propagation(kind: &Kind, old: &Value) -> Option<Propagation> {
    let finalizers = old["metadata"]["finalizers"].as_array();
    let is_decided = finalizers.is_some_and(|list| list.iter().any(|one| one == ORPHAN || one == FOREGROUND));
    (kind.orphans && !is_decided).then_some(Propagation::Orphan)
}

/// 409 for a precondition that does not hold. Upstream names the kind here, not the resource.
///
/// Source: apiserver `pkg/registry/rest/delete.go`, `BeforeDelete`.
fn outdated(at: Place<'_>, what: &str, wanted: &str, found: &str, happened: &str) -> Status {
    let names = &at.served.kind.names;
    Status::conflict(
        &GroupResource { resource: names.kind.clone(), ..names.resource.clone() },
        at.name,
        format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {happened}"
        ),
    )
}

/// Sets or clears the garbage collector's finalizers as the policy says; without one, they stay as they are.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(policy) = propagation else { return };
    let metadata = metadata::of(object);
    let mut list: Vec<Value> = metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    list.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
    match policy {
        Propagation::Orphan => list.push(ORPHAN.into()),
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    if list.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), list.into());
    }
}

/// Marks an object that does not die gracefully.
fn mark(object: &mut Value, now: Timestamp, grace: Option<i64>) {
    let metadata = metadata::of(object);
    if metadata.get("deletionTimestamp").is_none() {
        bump(metadata);
        metadata.insert("deletionTimestamp".to_owned(), metadata::rfc3339(now).into());
    }
    if let Some(seconds) = grace {
        metadata.insert("deletionGracePeriodSeconds".to_owned(), seconds.into());
    }
}

/// Marks an object that has `seconds` to live; `granted` is what it had before, 0 when it was not being deleted.
fn mark_gracefully(object: &mut Value, now: Timestamp, mut seconds: i64, granted: i64) {
    let metadata = metadata::of(object);
    let begun =
        metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    let add = |from: Timestamp, s: i64| from.saturating_add(SignedDuration::from_secs(s)).unwrap_or(from);
    let at = match begun {
        None => {
            bump(metadata);
            add(now, seconds)
        }
        Some(end) => {
            let at = add(end, seconds - granted);
            if at < now {
                // The shorter period is over already: the node still gets its second to act.
                seconds = seconds.min(1);
                now
            } else {
                at
            }
        }
    };
    metadata.insert("deletionTimestamp".to_owned(), metadata::rfc3339(at).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), seconds.into());
}

fn bump(metadata: &mut serde_json::Map<String, Value>) {
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|g| *g > 0) {
        metadata.insert("generation".to_owned(), json!(generation + 1));
    }
}
