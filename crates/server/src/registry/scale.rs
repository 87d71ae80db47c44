//! The `autoscaling/v1` Scale view of what has replicas.
//!
//! Source: kubernetes `pkg/registry/apps/deployment/storage/storage.go` (`ScaleREST`).

use std::collections::BTreeMap;

use api::field;
use api::patch::apply::scale::{to_object, to_scale};
use api::schema::Type;
use api::selector::Selector;
use api::status::Status;
use kinds::kind::Kind;
use serde_json::{Value, json};

use super::ownership::put;

/// The version of Scales.
pub const VERSION: &str = "autoscaling/v1";

/// The type of Scales.
pub fn schema() -> Option<Type<'static>> {
    kinds::schema::get("io.k8s.api.autoscaling.v1.Scale")
}

/// The Scale of an object.
pub fn of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "apiVersion": VERSION,
        "kind": "Scale",
        "metadata": {},
        "spec": {},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    // None at all is written by leaving it out.
    if let Some(replicas) = object["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            scale["metadata"][field] = value.clone();
        }
    }
    // ReplicationControllers select by labels alone. A selector that does not parse cannot have been stored; an absent one
    // has no text form.
    let labels: Result<BTreeMap<String, String>, _> = serde_json::from_value(object["spec"]["selector"].clone());
    let selector = match labels {
        Ok(labels) => Ok(Selector::from_labels(&labels)),
        Err(_) => Selector::from_json(&object["spec"]["selector"]),
    };
    if let Ok(selector) = selector
        && !selector.is_nothing()
    {
        scale["status"]["selector"] = selector.to_string().into();
    }
    scale
}

/// The Scale of an object that is about to be written, with those who own its number of replicas.
///
/// # Errors
/// 500 when the object's managers cannot be read.
pub fn managed(object: &Value, kind: &Kind) -> Result<Value, Status> {
    let mut scale = of(object);
    let fields = to_scale(&object["metadata"]["managedFields"], &versions(kind)).map_err(Status::unclassified)?;
    put(&mut scale, fields);
    Ok(scale)
}

fn versions(kind: &Kind) -> Vec<String> {
    kind.versions.iter().map(super::catalog::api_version).collect()
}

/// Writes a Scale that was made by [`managed`] back, with its managers; `version` is that of the object.
///
/// # Errors
/// As [`apply`], and 500 when managers cannot be read.
pub fn write(scale: &Value, object: &Value, kind: &Kind, version: &str) -> Result<Value, Status> {
    let mut written = apply(scale, object)?;
    let fields = |object: &Value| object["metadata"]["managedFields"].clone();
    let fields = to_object(&fields(object), &fields(scale), version, &versions(kind)).map_err(Status::unclassified)?;
    put(&mut written, fields);
    Ok(written)
}

/// Writes a Scale's replicas into the object that it was made of.
///
/// # Errors
/// 400 when the Scale is of another object's name, 422 for a count that is none, 409 for an older revision.
fn apply(scale: &Value, object: &Value) -> Result<Value, Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let given = scale["metadata"]["name"].as_str().unwrap_or_default();
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let mut errors = Vec::new();
    let path = field::Path::new("spec").child("replicas");
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => match value.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
            Some(n) => n,
            None => return Err(Status::bad_request(format!("Scale: {path} must be a 32-bit whole number"))),
        },
    };
    if replicas < 0 {
        errors.push(field::Error::invalid(&path, replicas, "must be greater than or equal to 0"));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("autoscaling", "Scale", name, &errors));
    }
    let mut object = object.clone();
    object["spec"]["replicas"] = replicas.into();
    for field in ["resourceVersion", "uid"] {
        match scale["metadata"].get(field).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())) {
            Some(value) => object["metadata"][field] = value.clone(),
            // Without one the change goes to the latest state.
            None => drop(object["metadata"].as_object_mut().and_then(|m| m.remove(field))),
        }
    }
    Ok(object)
}
