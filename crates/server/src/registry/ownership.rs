//! Who owns what of the objects that are written: `metadata.managedFields` of creations and updates, and applying.
//!
//! The decisions are [`api::patch::apply`]'s. Source: apiserver `pkg/endpoints/handlers/{create,update,patch}.go`,
//! `pkg/endpoints/handlers/fieldmanager/equality.go`.

use std::borrow::Cow;

use api::patch::apply::{self, Error, Set, Versions, Write};
use api::schema::Type;
use api::status::Status;
use kinds::kind::Action;
use serde_json::{Map, Value, json};

use super::catalog::{Catalog, Served};
use super::{Place, Registry, Writer, metadata, scale};

/// What a service account is asked for.
const TOKENS: &str = "authentication.k8s.io/v1";
const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";

/// A configuration to apply.
pub struct Application {
    /// An object in the version of the request.
    pub config: Value,
    pub force: bool,
    /// What strict field validation has against it, once everything else is well.
    pub strict: Option<Status>,
}

/// The versions of the kind that an endpoint serves.
struct Kinds<'a> {
    catalog: &'a Catalog,
    served: &'a Served,
}

impl Kinds<'_> {
    fn find(&self, api_version: &str) -> Option<&Served> {
        if self.served.api_version() == api_version {
            return Some(self.served);
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = self.catalog.find(group, version, &self.served.kind.names.resource.resource)?;
        (found.kind_name() == self.served.kind_name()).then_some(found)
    }
}

impl Versions for Kinds<'_> {
    fn of(&self, api_version: &str) -> Option<Type<'_>> {
        if api_version == scale::VERSION {
            return scale::schema();
        }
        kinds::schema::get(&self.find(api_version)?.version().schema)
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        let mut object = object.clone();
        from.import(&mut object);
        to.export(&mut object);
        Some(object)
    }
}

impl Registry {
    /// Notes in an object who owns what, once it is as its client wants it. Objects are in the storage version; `live`
    /// is what it was, if it was there.
    pub(super) fn note(&self, at: Place<'_>, subresource: &str, live: Option<&Value>, new: &mut Value, by: Writer<'_>) {
        let fields = self.with_write(at, subresource, by, |write, _| {
            write.update(live.map(|live| shown(at.served, live)).as_deref(), &shown(at.served, new))
        });
        if let Some(fields) = fields {
            put(new, fields);
        }
    }

    /// As [`Registry::note`], for the body of a sub-resource that is of another kind than its object.
    pub(super) fn note_body(
        &self,
        at: Place<'_>,
        subresource: &str,
        live: Option<&Value>,
        new: &mut Value,
        by: Writer<'_>,
    ) {
        if let Some(fields) = self.with_write(at, subresource, by, |write, _| write.update(live, new)) {
            put(new, fields);
        }
    }

    /// Returns `live` with a configuration applied, both in the version of the request; `None` is an object to come.
    pub(super) fn applied(
        &self,
        at: Place<'_>,
        subresource: &str,
        live: Option<&Value>,
        application: &Application,
        by: Writer<'_>,
    ) -> Result<Value, Status> {
        let apply = |write: &Write<'_>, of| (write.apply(live, &application.config, application.force), of);
        let Some((applied, of)) = self.with_write(at, subresource, by, apply) else {
            return Err(Status::unsupported_media_type(
                "server-side apply is not supported yet by coracle: objects of this kind have no schema",
            ));
        };
        let applied = applied.map_err(|error| match error {
            Error::BadRequest(why) => Status::bad_request(why),
            Error::Conflicts { message, causes } => Status::apply_conflict(message, causes),
            Error::Unfit(why) => Status::unclassified(why),
        })?;
        let mut object = applied.object.unwrap_or_else(|| live.cloned().unwrap_or_else(|| json!({})));
        put(&mut object, applied.managed_fields);
        if let Err(error) = of.check(&object) {
            let metadata = &application.config["metadata"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (version, kind) = (text(&application.config["apiVersion"]), text(&application.config["kind"]));
            let slash = if version.contains('/') { "" } else { "/" };
            let of = format!("{slash}{version}, Kind={kind}");
            // Here only types that decode themselves go wrong, which know nothing of the field.
            let error = match error.to_string().split_once("Go struct field ") {
                Some((before, after)) => {
                    format!("{before}Go value of type {}", after.rsplit(' ').next().unwrap_or_default())
                }
                None => error.to_string(),
            };
            let prefix = if error.starts_with("illegal base64 data") { "error decoding from json: " } else { "" };
            return Err(Status::unclassified(format!(
                "failed to convert new object ({}/{}; {of}) to proper version: unable to convert unstructured object to {of}: {prefix}{error}",
                text(&metadata["namespace"]),
                text(&metadata["name"]),
            )));
        }
        of.prune(&mut object);
        of.settle_zeros(&mut object);
        match &application.strict {
            Some(status) => Err(status.clone()),
            None => Ok(object),
        }
    }

    fn with_write<T>(
        &self,
        at: Place<'_>,
        subresource: &str,
        by: Writer<'_>,
        decide: impl FnOnce(&Write<'_>, Type<'static>) -> T,
    ) -> Option<T> {
        let served = at.served;
        let versions = Kinds { catalog: &self.catalog, served };
        let action = served.subresource(subresource).map(|sub| &sub.action);
        let (api_version, kind, of) = match action {
            Some(Action::Scale) => (scale::VERSION.to_owned(), "Scale", scale::schema()),
            Some(Action::Token) => (TOKENS.to_owned(), "TokenRequest", kinds::schema::get(TOKEN_REQUEST)),
            _ => (served.api_version(), served.kind_name(), kinds::schema::get(&served.version().schema)),
        };
        let of = of?;
        let write = Write {
            versions: &versions,
            api_version: &api_version,
            of,
            kind,
            subresource,
            manager: by.manager,
            resets: &Set::of_fields(served.kind.resets(subresource)),
            now: &metadata::rfc3339(self.now()),
        };
        Some(decide(&write, of))
    }
}

/// An object of the storage version in the served one.
fn shown<'v>(served: &Served, object: &'v Value) -> Cow<'v, Value> {
    if served.is_storage() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    served.export(&mut object);
    Cow::Owned(object)
}

/// Sets `metadata.managedFields`.
pub(super) fn put(object: &mut Value, fields: Option<Value>) {
    let metadata = metadata::of(object);
    match fields {
        Some(fields) => drop(metadata.insert("managedFields".to_owned(), fields)),
        None => drop(metadata.remove("managedFields")),
    }
}

/// Takes the trees of owned fields out of an object, in order: they are half of it, and nobody who admits or validates it looks there.
pub(super) fn detach(object: &mut Value) -> Vec<Value> {
    entries(object).map(|entry| entry.remove("fieldsV1").unwrap_or_default()).collect()
}

/// Puts back what [`detach`] has returned.
pub(super) fn attach(object: &mut Value, owned: Vec<Value>) {
    for (entry, fields) in entries(object).zip(owned).filter(|(_, fields)| !fields.is_null()) {
        entry.insert("fieldsV1".to_owned(), fields);
    }
}

fn entries(object: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let entries = metadata::of(object).get_mut("managedFields").and_then(Value::as_array_mut);
    entries.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Whether an update changes nothing but the times at which managers wrote.
pub(super) fn changes_nothing(new: &Value, old: &Value) -> bool {
    if new == old {
        return true;
    }
    let fields = |object: &'_ Value| -> Value { object["metadata"]["managedFields"].clone() };
    same_but(new, old, &["metadata", "managedFields"]) && apply::same_but_times(&fields(new), &fields(old))
}

/// Whether two objects are the same but for the field at a path.
pub(super) fn same_but(a: &Value, b: &Value, path: &[&str]) -> bool {
    let (Some((first, rest)), Some(a), Some(b)) = (path.split_first(), a.as_object(), b.as_object()) else {
        return path.is_empty() || a == b;
    };
    let others = |own: &serde_json::Map<String, Value>| own.len() - usize::from(own.contains_key(*first));
    let none = Value::Null;
    others(a) == others(b)
        && a.iter().filter(|(name, _)| name != first).all(|(name, value)| b.get(name) == Some(value))
        && same_but(a.get(*first).unwrap_or(&none), b.get(*first).unwrap_or(&none), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_alone_are_no_change() {
        let object = |time: &str, fields: Value, data: &str| {
            json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time, "fieldsV1": fields}]},
                "data": data})
        };
        let old = object("1", json!({"f:data": {}}), "x");
        assert!(changes_nothing(&old, &old));
        assert!(changes_nothing(&object("2", json!({"f:data": {}}), "x"), &old));
        assert!(!changes_nothing(&object("2", json!({"f:data": {}}), "y"), &old));
        assert!(!changes_nothing(&object("2", json!({}), "x"), &old));
        assert!(same_but(&json!({"a": {"b": 1, "c": 2}}), &json!({"a": {"c": 2}}), &["a", "b"]));
        assert!(!same_but(&json!({"a": {"b": 1, "c": 2}}), &json!({"a": {"c": 3}}), &["a", "b"]));
    }
}
