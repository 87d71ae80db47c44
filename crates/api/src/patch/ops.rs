//! RFC 6902, with upstream's limits.
//!
//! The operations themselves are the `json-patch` crate's.

use json_patch::{CopyOperation, PatchOperation};
use serde_json::Value;

use super::Error;
use crate::field::quoted;

/// Upstream's `maxJSONPatchOperations`.
const MOST_OPERATIONS: usize = 10_000;
/// What all copies together may add, in bytes of JSON. Source: apiserver `pkg/server/config.go`, from which upstream
/// sets its library's limit.
const MOST_COPIED: usize = 3 * 1024 * 1024;
/// Stored values must be readable again: serde_json stops at 128.
const DEEPEST: usize = 120;

#[derive(Clone, Debug)]
pub(super) struct Operations(Vec<PatchOperation>);

impl Operations {
    pub fn parse(operations: Vec<Value>) -> Result<Self, Error> {
        if operations.len() > MOST_OPERATIONS {
            let count = operations.len();
            return Err(Error::TooLarge(format!(
                "The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {count}"
            )));
        }
        let parse = |(at, operation)| {
            serde_json::from_value(operation)
                .map_err(|error| Error::BadRequest(format!("error decoding patch: operation {at}: {error}")))
        };
        operations.into_iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    pub fn apply(&self, mut object: Value) -> Result<Value, Error> {
        let mut copied = 0;
        for (at, operation) in self.0.iter().enumerate() {
            if let PatchOperation::Copy(CopyOperation { from, .. }) = operation {
                copied += from.resolve(&object).map_or(0, |value| value.to_string().len());
                if copied > MOST_COPIED {
                    return Err(Error::Unprocessable(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the \
                         limit {MOST_COPIED}"
                    )));
                }
            }
            json_patch::patch_unsafe(&mut object, std::slice::from_ref(operation)).map_err(|error| {
                let (kind, path) = (error.kind, quoted(&error.path.to_string()));
                Error::Unprocessable(format!("operation {at} of the patch failed at {path}: {kind}"))
            })?;
        }
        if deeper_than(&object, DEEPEST) {
            return Err(Error::Unprocessable(format!("the patched object nests more than {DEEPEST} levels deep")));
        }
        Ok(object)
    }
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(members) => levels == 0 || members.values().any(|member| deeper_than(member, levels - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
