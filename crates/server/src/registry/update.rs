//! Updating objects: replaced, patched, or changed by an action, always on the latest state.
//!
//! Source: apiserver `pkg/registry/generic/registry/store.go` (`Update`), `pkg/registry/rest/update.go`,
//! `pkg/endpoints/handlers/{update,patch}.go`.

use std::sync::Arc;

use api::field;
use api::object::Object;
use api::status::Status;
use kinds::kind::{Action, Kind, Strategy};
use serde_json::Value;
use store::{Compare, Op, Snapshot};

use super::create::Failed;
use super::ownership::{Application, changes_nothing, same_but};
use super::{Place, Registry, Writer, claims, draft, metadata, scale};
use crate::admit::Operation;
use crate::registry::catalog::Served;

/// The wording that clients look for before they try again.
pub const STALE: &str = "the object has been modified; please apply your changes to the latest version and try again";

/// What an update writes, in the served version.
pub enum Change<'a> {
    /// PUT.
    Replace(Value),
    /// PATCH: from the current object to the wanted one; called again after a race.
    Edit(&'a Edit<'a>),
    /// Server-side apply.
    Apply(&'a Application),
    /// As [`Change::Edit`], by the server itself: nobody comes to own what changes.
    Act(&'a Edit<'a>),
}

/// From the current object to the wanted one.
pub type Edit<'a> = dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a;

/// An update's outcome.
pub struct Updated {
    pub object: Arc<Object>,
    pub created: bool,
}

impl Registry {
    /// Updates the object at `at` through its main endpoint (`subresource` empty) or one with a strategy of its own.
    ///
    /// # Errors
    /// 404, 409 when the change names an older revision, 422, and what admission refuses.
    pub async fn update(
        &self,
        at: Place<'_>,
        subresource: &str,
        mut change: Change<'_>,
        by: Writer<'_>,
    ) -> Result<Updated, Status> {
        let served = at.served;
        let kind = &served.kind;
        let unchanged = Strategy::none();
        let finalize = Strategy::none().validating(kinds::core::namespace::validate_finalize);
        let strategy = match served.subresource(subresource).map(|sub| &sub.action) {
            Some(Action::Own(strategy)) => strategy,
            // These change fields that the main endpoint keeps users from.
            Some(Action::Binding | Action::Eviction) => &unchanged,
            Some(Action::Finalize) => &finalize,
            Some(Action::Scale | Action::Token | Action::Node | Action::Proxy) | None => &kind.strategy,
        };
        if let Change::Replace(object) = &mut change {
            if metadata::text(object, "name").is_empty() {
                return Err(Status::bad_request(
                    "name of the object (as determined by the object's metadata.name) is required: name must be provided",
                ));
            }
            named(at, object)?;
            metadata::tidy(object);
            metadata::put_in_namespace(object, at.namespace)?;
        }
        loop {
            let snapshot = self.store.snapshot();
            let current = match at.find(&snapshot) {
                Ok(current) => current.clone(),
                Err(status) if !status.is_not_found() => return Err(status),
                Err(not_found) => {
                    let created = match &change {
                        Change::Replace(object) if kind.create_on_update && subresource.is_empty() => {
                            self.create_by_put(at, object.clone(), by).await
                        }
                        Change::Apply(application) if subresource.is_empty() => {
                            self.create_by_apply(at, application, by).await
                        }
                        _ => return Err(not_found),
                    };
                    match created {
                        // Somebody else was first: update theirs.
                        Err(status) if status.is_already_exists() => continue,
                        created => return created,
                    }
                }
            };
            match self.update_once(at, subresource, strategy, &change, &snapshot, &current, by).await {
                Ok(object) => return Ok(Updated { object, created: false }),
                Err(Failed::Refused(status)) => return Err(status),
                // Whoever came first made progress, so this ends.
                Err(Failed::Raced | Failed::Exists(_)) => {}
            }
        }
    }

    async fn create_by_put(&self, at: Place<'_>, mut object: Value, by: Writer<'_>) -> Result<Updated, Status> {
        if metadata::resource_version(&object)? != 0 || !metadata::text(&object, "uid").is_empty() {
            // It is an update of something that is gone.
            return Err(at.conflict(if metadata::text(&object, "uid").is_empty() {
                STALE.to_owned()
            } else {
                precondition_uid(metadata::text(&object, "uid"), "")
            }));
        }
        metadata::of(&mut object).remove("resourceVersion");
        if let Some(status) = by.create_refused {
            return Err(status.clone());
        }
        let object = self.create(at.served, at.namespace, object, by).await?;
        Ok(Updated { object, created: true })
    }

    async fn create_by_apply(
        &self,
        at: Place<'_>,
        application: &Application,
        by: Writer<'_>,
    ) -> Result<Updated, Status> {
        let object = self.applied(at, "", None, application, by)?;
        let uid = metadata::text(&object, "uid");
        if !uid.is_empty() {
            return Err(at.conflict(format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            )));
        }
        named(at, &object)?;
        if let Some(status) = by.create_refused {
            return Err(status.clone());
        }
        let object = self.create_noted(at.served, at.namespace, object, true, by).await?;
        Ok(Updated { object, created: true })
    }

    #[expect(clippy::too_many_arguments, reason = "one attempt needs everything that the loop around it holds")]
    async fn update_once(
        &self,
        at: Place<'_>,
        subresource: &str,
        strategy: &Strategy,
        change: &Change<'_>,
        snapshot: &Snapshot,
        current: &Arc<Object>,
        by: Writer<'_>,
    ) -> Result<Arc<Object>, Failed> {
        let served = at.served;
        let kind = &served.kind;
        let old = self.value(served, current);
        let mut new = self.wanted(at, subresource, strategy, change, &old, by)?;
        if let Some(warning) = metadata::dedup_owners(&mut new) {
            by.warnings.add(warning);
        }

        let revision = metadata::resource_version(&new)?;
        #[cfg(feature = "planted")]
        let revision = if planted::every(planted::Bug::NoConflictCheck, 4) { current.revision } else { revision };
        if revision == 0 && !kind.unconditional_update && matches!(change, Change::Replace(_)) {
            let path = field::Path::new("metadata").child("resourceVersion");
            let error = field::Error::invalid(&path, 0, "must be specified for an update");
            // Upstream names the resource here, not the kind.
            let of = served.group_resource();
            return Err(Status::invalid(&of.group, &of.resource, at.name, &[error]).into());
        }
        if revision != 0 && revision != current.revision {
            return Err(at.conflict(STALE).into());
        }
        let uid = metadata::text(&new, "uid");
        if !uid.is_empty() && uid != current.meta().uid {
            return Err(at.conflict(precondition_uid(uid, &current.meta().uid)).into());
        }

        let attributes = self.attributes(Operation::Update, at, subresource, Some(&old), snapshot, by);
        self.admission.admit(&attributes, &mut new).await?;
        (strategy.default)(&mut new);

        match old["metadata"].get("generation") {
            Some(generation) => drop(metadata::of(&mut new).insert("generation".to_owned(), generation.clone())),
            None => drop(metadata::of(&mut new).remove("generation")),
        }
        (strategy.prepare)(&mut new, Some(&old));
        metadata::carry_over(&mut new, &old);
        metadata::tidy(&mut new);
        metadata::of(&mut new).insert("resourceVersion".to_owned(), current.revision.to_string().into());

        if subresource.is_empty() {
            self.allocate(at, &mut new, Some(&old), snapshot, by)?;
        }
        let errors = super::errors(served, strategy, &new, Some(&old));
        if !errors.is_empty() {
            return Err(at.invalid(&errors).into());
        }
        for text in (strategy.warnings)(&new, Some(&old)) {
            by.warnings.add(text);
        }
        self.admission.validate(&attributes, Some(&new)).await?;

        if changes_nothing(&new, &old) {
            return Ok(current.clone());
        }
        let key = at.key();
        let (mut compares, mut ops) = (vec![Compare::Revision(key.clone(), current.revision)], Vec::new());
        if ends(kind, &old, &new) {
            // The last finalizer is gone: the update is answered with the object, and the object removed.
            claims::change(kind, &key, Some(&old), None, snapshot, &mut compares, &mut ops)
                .map_err(|taken| at.invalid(&[taken]))?;
            if !by.dry_run {
                ops.push(Op::Delete(key.clone()));
                self.commit_all(compares, ops).await?;
            }
            return Ok(draft(key, new)?.commit(current.revision));
        }
        claims::change(kind, &key, Some(&old), Some(&new), snapshot, &mut compares, &mut ops)
            .map_err(|taken| at.invalid(&[taken]))?;
        let lazily = is_renewal(kind, &old, &new);
        let draft = draft(key, new)?;
        ops.insert(0, if lazily { Op::PutLazily(draft) } else { Op::Put(draft) });
        self.commit(compares, ops, by.dry_run, current.revision).await
    }

    /// What an object is to be, in the storage version, with defaults and with who owns what of it.
    fn wanted(
        &self,
        at: Place<'_>,
        subresource: &str,
        strategy: &Strategy,
        change: &Change<'_>,
        old: &Value,
        by: Writer<'_>,
    ) -> Result<Value, Status> {
        let served = at.served;
        let shown = || {
            let mut shown = old.clone();
            served.export(&mut shown);
            shown
        };
        let mut new = if is_scale(served, subresource) {
            let shown = shown();
            let scale = scale::managed(&shown, &served.kind)?;
            let mut wanted = match change {
                Change::Replace(scale) => scale.clone(),
                Change::Edit(edit) | Change::Act(edit) => edit(&scale)?,
                Change::Apply(application) => self.applied(at, subresource, Some(&scale), application, by)?,
            };
            if !matches!(change, Change::Apply(_)) {
                self.note_body(at, subresource, Some(&scale), &mut wanted, by);
            }
            scale::write(&wanted, &shown, &served.kind, &served.api_version())?
        } else {
            let new = match change {
                Change::Replace(object) => object.clone(),
                Change::Edit(edit) | Change::Act(edit) => edit(&shown())?,
                Change::Apply(application) => self.applied(at, subresource, Some(&shown()), application, by)?,
            };
            named(at, &new)?;
            new
        };
        metadata::put_in_namespace(&mut new, at.namespace)?;
        served.import(&mut new);
        (strategy.default)(&mut new);
        if matches!(change, Change::Replace(_) | Change::Edit(_)) && !is_scale(served, subresource) {
            self.note(at, subresource, Some(old), &mut new, by);
        }
        Ok(new)
    }

    /// Commits a transaction that writes no object to be answered with.
    pub(super) async fn commit_all(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<store::Committed, Failed> {
        match self.store.txn(compares, ops).await {
            Ok(committed) => Ok(committed),
            Err(store::Error::Conflict { .. }) => Err(Failed::Raced),
            Err(error) => Err(super::store_failure(&error).into()),
        }
    }
}

fn is_scale(served: &Served, subresource: &str) -> bool {
    served.subresource(subresource).is_some_and(|sub| matches!(sub.action, Action::Scale))
}

/// Source: apiserver `pkg/endpoints/handlers/rest.go`, `checkName`.
fn named(at: Place<'_>, object: &Value) -> Result<(), Status> {
    let (name, wanted) = (metadata::text(object, "name"), at.name);
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != wanted {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        )));
    }
    Ok(())
}

pub(super) fn precondition_uid(wanted: &str, found: &str) -> String {
    format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}")
}

/// Whether an update takes away the last thing that kept a deleted object.
fn ends(kind: &Kind, old: &Value, new: &Value) -> bool {
    let old = &old["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let deleted = !old["deletionTimestamp"].is_null() && old["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
    let kept = !none(&new["metadata"]["finalizers"]) || finalizes(kind) && !none(&new["spec"]["finalizers"]);
    deleted && !kept
}

/// Whether the kind keeps finalizers of its own in its specification, as namespaces do.
pub(super) fn finalizes(kind: &Kind) -> bool {
    kind.subresources.iter().any(|sub| matches!(sub.action, Action::Finalize))
}

/// Whether a write only renews a lease: heartbeats must not wear out disks.
fn is_renewal(kind: &Kind, old: &Value, new: &Value) -> bool {
    if kind.names.resource.group != "coordination.k8s.io" || kind.names.resource.resource != "leases" {
        return false;
    }
    let timeless = |lease: &Value| {
        let mut lease = lease.clone();
        lease["spec"]["renewTime"] = Value::Null;
        lease
    };
    same_but(&timeless(old), &timeless(new), &["metadata", "managedFields"])
}
