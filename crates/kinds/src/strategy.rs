//! The pieces that most strategies are made of.
//!
//! Source: apiserver `pkg/registry/rest/{create,update}.go`.

use api::field::Error;
use serde_json::Value;

use crate::kind::Strategy;
use crate::value::{copy, is_empty, number, remove, set};

/// Drops fields that are `null`, as decoding into typed objects does.
pub fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, field| !field.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(prune_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether two values mean the same: absent, `null` and empty are alike.
///
/// Source: apimachinery `pkg/api/equality/semantic.go`. Quantities are compared as written; defaulting has brought them
/// into one form.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(key, value)| same(value, b.get(key).unwrap_or(&Value::Null)))
                && b.iter().all(|(key, value)| a.contains_key(key) || is_zero(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Null, other) | (other, Value::Null) => is_zero(other),
        (a, b) => a == b,
    }
}

/// Whether a typed decoder makes the same of it as of nothing. Numbers and booleans count, for they may stand behind
/// a pointer.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().all(is_zero),
        other => is_empty(other),
    }
}

/// Sets `metadata.generation`: 1 for a new object, one more when `part` of it changed, otherwise what it was.
pub fn generation(object: &mut Value, old: Option<&Value>, changed: impl Fn(&Value, &Value) -> bool) {
    let generation = match old {
        None => 1,
        Some(old) => number(&old["metadata"]["generation"]) + i64::from(changed(object, old)),
    };
    // Kinds without a specification have none, which is written by leaving it out.
    match object.get_mut("metadata") {
        Some(metadata) if generation == 0 => drop(remove(metadata, "generation")),
        Some(metadata) => set(metadata, "generation", generation),
        None => {}
    }
}

/// For [`generation`]: whether the specification changed.
pub fn spec_changed(new: &Value, old: &Value) -> bool {
    !same(&new["spec"], &old["spec"])
}

/// Keeps clients of the main endpoint from setting the status: a new object gets `initial`, an old one keeps its own.
pub fn keep_status(object: &mut Value, old: Option<&Value>, initial: &Value) {
    match old {
        Some(old) => copy(object, "status", old),
        None if initial.is_null() => drop(remove(object, "status")),
        None => set(object, "status", initial.clone()),
    }
}

/// For `status`: keeps everything but the metadata and the status.
pub fn only_status(object: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    for field in ["spec", "data", "stringData", "type"] {
        copy(object, field, old);
    }
    generation(object, Some(old), |_, _| false);
}

impl Strategy {
    /// Of a `status` sub-resource.
    pub fn status() -> Self {
        Self { prepare: Box::new(only_status), ..Self::none() }
    }

    /// Sets what [`Strategy::default`] fills in, once nulls are dropped.
    #[must_use]
    pub fn defaulting(self, fill: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        let default = Box::new(move |object: &mut Value| {
            prune_nulls(object);
            fill(object);
        });
        Self { default, ..self }
    }

    #[must_use]
    pub fn preparing(self, prepare: impl Fn(&mut Value, Option<&Value>) + Send + Sync + 'static) -> Self {
        Self { prepare: Box::new(prepare), ..self }
    }

    #[must_use]
    pub fn validating(self, check: impl Fn(&Value, Option<&Value>) -> Vec<Error> + Send + Sync + 'static) -> Self {
        Self { validate: Box::new(check), ..self }
    }

    #[must_use]
    pub fn resetting(self, resets: &'static [&'static str]) -> Self {
        Self { resets, ..self }
    }

    #[must_use]
    pub fn warning(self, warn: impl Fn(&Value, Option<&Value>) -> Vec<String> + Send + Sync + 'static) -> Self {
        Self { warnings: Box::new(warn), ..self }
    }
}
