//! Patches: RFC 6902, RFC 7386, strategic merge and server-side apply.
//!
//! Sources: apiserver `pkg/endpoints/handlers/patch.go`, apimachinery `pkg/util/strategicpatch/patch.go`. Where upstream
//! answers a patch that does not fit its object with status 500, or drops the reason, the answer here is 422 with it.

use serde_json::{Map, Value};

use crate::json;
use crate::schema::Type;

pub mod apply;
mod ops;
mod strategic;

/// A patch as a client sent it.
#[derive(Clone, Debug)]
pub struct Patch {
    change: Change,
    strict: Vec<String>,
}

#[derive(Clone, Debug)]
enum Change {
    Json(ops::Operations),
    Merge(Value),
    Strategic(Map<String, Value>),
}

/// The kinds of patches, by their media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// RFC 7386 with lists merged by key and with directives.
    Strategic,
}

impl Format {
    /// Takes a media type without parameters.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch is malformed: status 400.
    #[error("{0}")]
    BadRequest(String),
    /// The patch does not fit the object: status 422.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch does too much: status 413.
    #[error("{0}")]
    TooLarge(String),
    /// The object's type is not known, so that its lists cannot be merged: status 415.
    #[error(
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    )]
    NoSchema,
}

impl Patch {
    /// Parses a request's body.
    ///
    /// # Errors
    /// [`Error::BadRequest`], or [`Error::TooLarge`] for a JSON patch of more than 10,000 operations.
    pub fn parse(format: Format, body: &[u8]) -> Result<Self, Error> {
        let prefix = if format == Format::Strategic { "" } else { "error decoding patch: " };
        let bad = |why: String| Error::BadRequest(format!("{prefix}{why}"));
        let parsed = json::parse(body).map_err(|error| bad(error.to_string()))?;
        let (of, prefix) = match format {
            Format::Json => (json::Of::Operations, "json patch "),
            Format::Merge | Format::Strategic => (json::Of::Anything, ""),
        };
        let found = if parsed.repeats || format == Format::Json { json::strict(body, of) } else { Vec::new() };
        let strict = found.iter().map(|problem| format!("{prefix}{problem}")).collect();
        let change = match (format, parsed.value) {
            (Format::Json, Value::Array(operations)) => Change::Json(ops::Operations::parse(operations)?),
            (Format::Json, other) => return Err(bad(not_a("[]handlers.jsonPatchOp", &other))),
            (Format::Merge, value @ Value::Object(_)) => Change::Merge(value),
            (Format::Strategic, Value::Object(members)) => Change::Strategic(members),
            (Format::Merge | Format::Strategic, other) => return Err(bad(not_a("map[string]interface {}", &other))),
        };
        Ok(Self { change, strict })
    }

    /// What strict field validation has to say about the patch itself, such as `duplicate field "spec.replicas"`.
    pub fn strict(&self) -> &[String] {
        &self.strict
    }

    /// Returns the patched object. `of` is its type, if it has one that is built in.
    ///
    /// # Errors
    /// [`Error::Unprocessable`] when the patch does not fit the object, [`Error::NoSchema`] for a strategic merge patch
    /// of an object without a type.
    pub fn apply(&self, object: Value, of: Option<Type<'_>>) -> Result<Value, Error> {
        match &self.change {
            Change::Json(operations) => operations.apply(object),
            Change::Merge(patch) => {
                let mut object = object;
                json_patch::merge(&mut object, patch);
                Ok(object)
            }
            Change::Strategic(patch) => {
                let of = of.ok_or(Error::NoSchema)?;
                let Value::Object(object) = object else {
                    return Err(Error::Unprocessable("invalid JSON document".to_owned()));
                };
                // What is patched is a struct that knows its type: what a patch says of it is not looked at.
                let is = ["apiVersion", "kind"].map(|field| (field, object.get(field).cloned()));
                let mut patched = strategic::apply(object, patch.clone(), of)?;
                for (field, value) in is {
                    let is_text = patched.get(field).is_none_or(|new| new.is_string() || new.is_null());
                    if let Some(value) = value.filter(|_| is_text) {
                        patched.insert(field.to_owned(), value);
                    }
                }
                Ok(Value::Object(patched))
            }
        }
    }
}

/// How Go's decoder names a value of another type than was expected.
pub fn not_a(go: &str, value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {kind} into Go value of type {go}")
}

#[cfg(test)]
mod tests;
