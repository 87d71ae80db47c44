//! How a write through one endpoint becomes an object, and the pieces that most strategies are made of.
//!
//! Source: apiserver `pkg/registry/rest/{create,update}.go`.

use api::field::Error;
use api::schema::{Scalar, Shape, Type};
use serde_json::Value;

use crate::schema;
use crate::value::{copy, is_empty, number, remove, set};

/// The steps by which a write through one endpoint becomes an object, in the order of the fields.
pub struct Strategy {
    /// Fills in what upstream's defaulting fills in. Runs on what clients send and on what older releases stored.
    pub default: Default,
    /// Clears and carries over the fields that this endpoint may not set (status on the main one, all but status on
    /// `status`), and bumps `metadata.generation` when the specification changed. `old` is `None` on create.
    pub prepare: Prepare,
    /// Every error at once, in upstream's words. Common metadata is validated by the server.
    pub validate: Validate,
    /// Texts for `Warning` headers.
    pub warnings: Warnings,
    /// What `prepare` keeps as it is whatever a client writes, such as `metadata.labels`: nobody comes to own it by a
    /// write through this endpoint. The status of kinds that have one for itself is kept on the main endpoint anyway.
    pub resets: &'static [&'static str],
}

pub type Default = Box<dyn Fn(&mut Value) + Send + Sync>;
pub type Prepare = Box<dyn Fn(&mut Value, Option<&Value>) + Send + Sync>;
pub type Validate = Box<dyn Fn(&Value, Option<&Value>) -> Vec<Error> + Send + Sync>;
pub type Warnings = Box<dyn Fn(&Value, Option<&Value>) -> Vec<String> + Send + Sync>;

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

/// Whether two values mean the same, whatever their types: absent, `null` and empty are alike.
///
/// Source: apimachinery `pkg/api/equality/semantic.go`. Quantities are compared as written; defaulting has brought them
/// into one form.
pub fn same(a: &Value, b: &Value) -> bool {
    alike(None, a, b)
}

/// As [`same`], for structs of a known type: where a pointer stands, an empty object is not the same as none.
pub fn same_structs(of: Option<Type<'_>>, a: &Value, b: &Value) -> bool {
    alike(of.map(Shape::Object), a, b)
}

fn alike(of: Option<Shape<'_>>, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            names.all(|name| {
                let (of, pointer) = member(of, name);
                match (a.get(name).filter(|a| !a.is_null()), b.get(name).filter(|b| !b.is_null())) {
                    (Some(a), Some(b)) => alike(of, a, b),
                    (Some(one), None) | (None, Some(one)) => !pointer && is_zero(of, one),
                    (None, None) => true,
                }
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            let of = match of {
                Some(Shape::List(items)) => Some(items.shape()),
                _ => None,
            };
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(of, a, b))
        }
        (Value::Null, other) | (other, Value::Null) => is_zero(of, other),
        (a, b) => a == b,
    }
}

/// What a member is, and whether it is another without it than with its zero value.
fn member<'a>(of: Option<Shape<'a>>, name: &str) -> (Option<Shape<'a>>, bool) {
    match of {
        Some(Shape::Object(of)) => {
            of.field(name).map_or((None, false), |field| (Some(field.shape()), field.is_pointer()))
        }
        Some(Shape::Map(values)) => (Some(values.shape()), true),
        _ => (None, false),
    }
}

/// Whether a typed decoder makes the same of it as of nothing. Where the type is unknown, numbers and booleans count, for
/// they may stand behind a pointer.
fn is_zero(of: Option<Shape<'_>>, value: &Value) -> bool {
    match (of, value) {
        (None | Some(Shape::Object(_)), Value::Object(members)) => members.iter().all(|(name, value)| {
            let (of, pointer) = member(of, name);
            value.is_null() || !pointer && is_zero(of, value)
        }),
        (Some(Shape::Scalar(_)), Value::Bool(truth)) => !truth,
        (Some(Shape::Scalar(scalar)), Value::Number(number)) => {
            scalar != Scalar::IntOrString && number.as_f64() == Some(0.0)
        }
        (_, other) => is_empty(other),
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
    !same_field(new, old, "spec")
}

/// Whether a field of two whole objects means the same.
pub fn same_field(new: &Value, old: &Value, field: &str) -> bool {
    alike(schema::of(new).and_then(|of| of.field(field)).map(|field| field.shape()), &new[field], &old[field])
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
    /// Takes everything as it comes, but for fields that are `null`.
    pub fn none() -> Self {
        Self {
            default: Box::new(prune_nulls),
            prepare: Box::new(|_, _| ()),
            validate: Box::new(|_, _| Vec::new()),
            warnings: Box::new(|_, _| Vec::new()),
            resets: &[],
        }
    }

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
