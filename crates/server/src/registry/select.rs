//! Which objects a list or watch covers.
//!
//! Source: apiserver `pkg/storage/selection_predicate.go`.

use api::key::Key;
use api::object::{Change, Object};
use api::selector::Selector;
use api::selector::fields::FieldSelector;
use api::status::Status;
use serde_json::json;

use super::Registry;
use super::catalog::Served;

/// A kind's objects in one namespace or all, by label and field.
#[derive(Clone)]
pub struct Selection {
    pub served: Served,
    /// All namespaces when `None`.
    pub namespace: Option<String>,
    labels: Selector,
    fields: FieldSelector,
    prefix: String,
}

impl Selection {
    /// Everything of a kind, in a namespace when it is not empty.
    pub fn all(served: &Served, namespace: &str) -> Self {
        let mut all = Self {
            served: served.clone(),
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            labels: Selector::everything(),
            fields: FieldSelector::everything(),
            prefix: String::new(),
        };
        all.prefix = all.common_prefix();
        all
    }

    /// Takes selectors in query form.
    ///
    /// # Errors
    /// 400 when one cannot be parsed, or names a field that this kind cannot be selected by.
    pub fn parse(served: &Served, namespace: &str, labels: &str, fields: &str) -> Result<Self, Status> {
        let mut all = Self::all(served, namespace);
        all.labels = Selector::parse(labels).map_err(Status::bad_request)?;
        all.fields = FieldSelector::parse(fields).map_err(Status::bad_request)?;
        let known: Vec<&str> = (served.kind.fields)(&json!({})).into_iter().map(|(name, _)| name).collect();
        for requirement in all.fields.requirements() {
            let name = requirement.field.as_str();
            if !["metadata.name", "metadata.namespace"].contains(&name) && !known.contains(&name) {
                return Err(Status::bad_request(if known.is_empty() {
                    format!("{name:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                } else {
                    format!("field label not supported: {name}")
                }));
            }
        }
        if let Some(namespace) = all.fields.exact("metadata.namespace")
            && all.namespace.is_none()
            && served.is_namespaced()
        {
            all.namespace = Some(namespace.to_owned());
        }
        all.prefix = all.common_prefix();
        Ok(all)
    }

    /// Whether every object of the scope is covered.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The prefix that every covered key has.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn common_prefix(&self) -> String {
        let of = &self.served.kind.names.resource;
        let name = self.fields.exact("metadata.name").filter(|name| !name.is_empty() && !name.contains('/'));
        let namespace = match &self.namespace {
            Some(namespace) if !namespace.contains('/') => Some(namespace.as_str()),
            // No object is in a namespace with such a name.
            Some(_) => Some("\u{0}"),
            None if self.served.is_namespaced() => None,
            None => Some(""),
        };
        match (namespace, name) {
            (Some(namespace), Some(name)) => Key::new(of, namespace, name).as_str().to_owned(),
            (Some(namespace), None) => Key::namespace_prefix(of, namespace),
            (None, _) => Key::resource_prefix(of),
        }
    }
}

impl Registry {
    /// Whether an object of the scope is selected.
    pub fn covers(&self, selection: &Selection, object: &Object) -> bool {
        if !selection.labels.matches(&object.meta().labels) {
            return false;
        }
        if selection.fields.is_empty() {
            return true;
        }
        let only_identity = selection.fields.requirements().iter().all(|one| one.field.starts_with("metadata."));
        let own = if only_identity {
            Vec::new()
        } else {
            (selection.served.kind.fields)(&self.outline(&selection.served, object))
        };
        selection.fields.matches(|field| match field {
            "metadata.name" => object.key().name(),
            "metadata.namespace" => object.key().namespace(),
            other => own.iter().find(|(name, _)| *name == other).map_or("", |(_, value)| value.as_str()),
        })
    }

    /// What a change means to someone who sees only the selection.
    pub fn seen(&self, selection: &Selection, change: Change) -> Option<Change> {
        if selection.is_everything() {
            return Some(change);
        }
        match change {
            Change::Added(object) => self.covers(selection, &object).then_some(Change::Added(object)),
            Change::Deleted { last, revision } => {
                self.covers(selection, &last).then_some(Change::Deleted { last, revision })
            }
            Change::Modified { old, new } => match (self.covers(selection, &old), self.covers(selection, &new)) {
                (true, true) => Some(Change::Modified { old, new }),
                (false, true) => Some(Change::Added(new)),
                // It leaves with the state in which it was last seen.
                (true, false) => Some(Change::Deleted { last: old, revision: new.revision }),
                (false, false) => None,
            },
        }
    }
}
