//! Creating objects.
//!
//! Source: apiserver `pkg/registry/generic/registry/store.go` (`Create`), `pkg/registry/rest/create.go`.

use std::sync::Arc;

use api::object::Object;
use api::status::Status;
use serde_json::Value;
use store::{Compare, Op};

use super::{Place, Registry, Writer, claims, draft, metadata, ownership, store_failure};
use crate::admit::Operation;
use crate::registry::catalog::Served;

/// How often a generated name is drawn again when it is taken: with 8 tries a million names share a prefix safely.
const NAME_ATTEMPTS: usize = 8;

/// Why a transaction was not committed.
pub(super) enum Failed {
    /// The object exists already.
    Exists(Arc<Object>),
    /// Something else changed meanwhile: try again on the new state.
    Raced,
    Refused(Status),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl Registry {
    /// Creates `object`, given in the served version, in `namespace`.
    ///
    /// # Errors
    /// What admission, validation or the store have against it.
    pub async fn create(
        &self,
        served: &Served,
        namespace: &str,
        object: Value,
        by: Writer<'_>,
    ) -> Result<Arc<Object>, Status> {
        self.create_noted(served, namespace, object, false, by).await
    }

    /// As [`Registry::create`]; with `noted`, the object says already who owns what.
    pub(super) async fn create_noted(
        &self,
        served: &Served,
        namespace: &str,
        mut object: Value,
        noted: bool,
        by: Writer<'_>,
    ) -> Result<Arc<Object>, Status> {
        if metadata::resource_version(&object).unwrap_or(0) != 0 {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        metadata::wipe(&mut object);
        metadata::of(&mut object).remove("resourceVersion");
        metadata::tidy(&mut object);
        let namespace = if served.is_namespaced() { namespace } else { "" };
        metadata::put_in_namespace(&mut object, namespace)?;
        if let Some(warning) = metadata::dedup_owners(&mut object) {
            by.warnings.add(warning);
        }
        served.import(&mut object);
        (served.kind.strategy.default)(&mut object);
        if !noted {
            self.note(Place { served, namespace, name: "" }, "", None, &mut object, by);
        }
        let base = match metadata::text(&object, "name") {
            "" => metadata::text(&object, "generateName").to_owned(),
            _ => String::new(),
        };
        let mut owned = ownership::detach(&mut object);
        // What compares nothing but its own absence is tried once.
        let retries = !base.is_empty() || served.kind.claims.is_some();
        let mut names = 0;
        loop {
            let copy = retries.then(|| (object.clone(), owned.clone()));
            match self.create_once(served, namespace, object, owned, &base, by).await {
                Ok(object) => return Ok(object),
                Err(Failed::Refused(status)) => return Err(status),
                Err(Failed::Raced) => {}
                Err(Failed::Exists(current)) => {
                    names += 1;
                    if base.is_empty() || names == NAME_ATTEMPTS {
                        return Err(exists(served, &current, &base));
                    }
                }
            }
            (object, owned) = copy.ok_or_else(|| Status::internal("a creation was raced for more than its name"))?;
        }
    }

    async fn create_once(
        &self,
        served: &Served,
        namespace: &str,
        mut object: Value,
        owned: Vec<Value>,
        base: &str,
        by: Writer<'_>,
    ) -> Result<Arc<Object>, Failed> {
        let snapshot = self.store.snapshot();
        let given = metadata::text(&object, "name").to_owned();
        let at = Place { served, namespace, name: &given };
        let attributes = self.attributes(Operation::Create, at, "", None, &snapshot, by);
        self.admission.admit(&attributes, &mut object).await?;
        (served.kind.strategy.default)(&mut object);
        metadata::put_in_namespace(&mut object, namespace)?;

        let fields = metadata::of(&mut object);
        fields.insert("uid".to_owned(), metadata::uuid(&self.rng).into());
        fields.insert("creationTimestamp".to_owned(), metadata::rfc3339(self.now()).into());
        if !base.is_empty() {
            fields.insert("name".to_owned(), metadata::generate_name(base, &self.rng).into());
        }
        (served.kind.strategy.prepare)(&mut object, None);
        let name = metadata::text(&object, "name").to_owned();
        let at = Place { served, namespace, name: &name };
        metadata::tidy(&mut object);

        self.allocate(at, &mut object, None, &snapshot, by)?;
        let errors = super::errors(served, &served.kind.strategy, &object, None);
        if !errors.is_empty() {
            return Err(at.invalid(&errors).into());
        }
        for text in (served.kind.strategy.warnings)(&object, None) {
            by.warnings.add(text);
        }
        let attributes = self.attributes(Operation::Create, at, "", None, &snapshot, by);
        self.admission.validate(&attributes, Some(&object)).await?;

        let key = at.key();
        if let Some(current) = snapshot.get(&key) {
            return Err(Failed::Exists(current.clone()));
        }
        let (mut compares, mut ops) = (vec![Compare::Absent(key.clone())], Vec::new());
        claims::change(&served.kind, &key, None, Some(&object), &snapshot, &mut compares, &mut ops)
            .map_err(|taken| at.invalid(&[taken]))?;
        ownership::attach(&mut object, owned);
        ops.insert(0, Op::Put(draft(key, object)?));
        self.commit(compares, ops, by.dry_run, 0).await
    }

    /// Commits a transaction whose first operation writes the object; a dry run only says what would be written.
    pub(super) async fn commit(
        &self,
        compares: Vec<Compare>,
        mut ops: Vec<Op>,
        dry_run: bool,
        revision: u64,
    ) -> Result<Arc<Object>, Failed> {
        if dry_run {
            return match ops.swap_remove(0) {
                Op::Put(draft) | Op::PutLazily(draft) => Ok(draft.commit(revision)),
                Op::Delete(_) => Err(Status::internal("a dry run of a write that writes nothing").into()),
            };
        }
        match self.store.txn(compares, ops).await {
            Ok(committed) => {
                let first = committed.objects.into_iter().next().flatten();
                first.ok_or_else(|| Status::internal("the store acknowledged a write without its object").into())
            }
            Err(store::Error::Conflict { index: 0, current: Some(current) }) => Err(Failed::Exists(current)),
            Err(store::Error::Conflict { .. }) => Err(Failed::Raced),
            Err(error) => Err(store_failure(&error).into()),
        }
    }
}

fn exists(served: &Served, current: &Object, base: &str) -> Status {
    let (of, name) = (served.group_resource(), current.key().name());
    if !base.is_empty() {
        return Status::generate_name_conflict(&of, name);
    }
    let mut status = Status::already_exists(&of, name);
    if current.meta().is_deleting() {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
