//! Patches of three kinds, applied to an object in the version that the client sees.
//!
//! Source: apiserver `pkg/endpoints/handlers/patch.go`.

use api::schema::Type;
use api::status::Status;
use client::PatchType;
use serde_json::Value;

/// Upstream's bound on a JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// A patch that has been checked for its form.
pub enum Patch {
    Json(Vec<Value>, json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// # Errors
    /// 400 for a patch that is not of its kind, 413 for one with too many operations.
    pub fn new(kind: PatchType, patch: Value) -> Result<Self, Status> {
        match kind {
            PatchType::Json => {
                let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                    .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
                if operations.len() > MAX_OPERATIONS {
                    return Err(Status::too_large(format!(
                        "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        operations.len()
                    )));
                }
                let raw = patch.as_array().cloned().unwrap_or_default();
                Ok(Self::Json(raw, operations))
            }
            PatchType::Merge | PatchType::Strategic if !patch.is_object() => {
                Err(Status::bad_request("error decoding patch: a merge patch must be a JSON object"))
            }
            PatchType::Merge => Ok(Self::Merge(patch)),
            PatchType::Strategic => Ok(Self::Strategic(patch)),
        }
    }

    /// Returns the patched object.
    ///
    /// # Errors
    /// 400 or 422 when the patch does not fit the object.
    pub fn apply(&self, object: &Value, schema: Option<Type<'_>>) -> Result<Value, Status> {
        let mut patched = object.clone();
        match self {
            Self::Json(_, operations) => json_patch::patch(&mut patched, operations).map_err(unprocessable)?,
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Strategic(patch) => {
                let Some(_schema) = schema else {
                    return Err(Status::unsupported_media_type(
                        "strategic merge patch is not supported by this kind: use application/merge-patch+json",
                    ));
                };
                json_patch::merge(&mut patched, patch);
            }
        }
        Ok(patched)
    }
}

/// Upstream's answer to a patch that cannot be applied.
fn unprocessable(why: impl std::fmt::Display) -> Status {
    let mut status =
        Status::bad_request(format!("the server rejected our request due to an error in our request: {why}"));
    status.code = 422;
    status.reason = api::status::Reason::Invalid;
    status
}
