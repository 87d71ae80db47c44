//! What every object's metadata must be.
//!
//! Source: apimachinery `pkg/api/validation/objectmeta.go`, `pkg/apis/meta/v1/validation/validation.go`.

use api::field::{Error, Path};
use api::names;
use serde_json::Value;

use super::delete::{FOREGROUND, ORPHAN};

const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Every error in the metadata of an object about to be stored; `old` is `None` on create.
pub fn metadata(object: &Value, old: Option<&Value>, namespaced: bool) -> Vec<Error> {
    let (metadata, path) = (&object["metadata"], Path::new("metadata"));
    let mut errors = Vec::new();
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let generated = text("generateName");
    if !generated.is_empty() {
        let at = path.child("generateName");
        errors.extend(names::is_path_segment_prefix(generated).into_iter().map(|m| Error::invalid(&at, generated, m)));
    }
    let name = text("name");
    let at = path.child("name");
    if name.is_empty() {
        errors.push(Error::required(&at, "name or generateName is required"));
    } else {
        errors.extend(names::is_path_segment_name(name).into_iter().map(|m| Error::invalid(&at, name, m)));
    }
    let namespace = text("namespace");
    let at = path.child("namespace");
    if namespaced && namespace.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if namespaced {
        errors.extend(names::is_dns1123_label(namespace).into_iter().map(|m| Error::invalid(&at, namespace, m)));
    }
    labels(&metadata["labels"], &path.child("labels"), &mut errors);
    annotations(&metadata["annotations"], &path.child("annotations"), &mut errors);
    owners(&metadata["ownerReferences"], &path.child("ownerReferences"), &mut errors);
    finalizers(&metadata["finalizers"], &path.child("finalizers"), &mut errors);
    if let Some(old) = old {
        update(metadata, &old["metadata"], &path, &mut errors);
    }
    errors
}

fn labels(labels: &Value, path: &Path, errors: &mut Vec<Error>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(names::is_qualified_name(key).into_iter().map(|m| Error::invalid(path, key.as_str(), m)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::is_label_value(value).into_iter().map(|m| Error::invalid(path, value, m)));
    }
}

fn annotations(annotations: &Value, path: &Path, errors: &mut Vec<Error>) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // Annotations may have capitals in their prefix.
        let lower = key.to_lowercase();
        errors.extend(names::is_qualified_name(&lower).into_iter().map(|m| Error::invalid(path, key.as_str(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.push(Error::too_long(path, MAX_ANNOTATIONS));
    }
}

fn owners(owners: &Value, path: &Path, errors: &mut Vec<Error>) {
    let mut controller: Option<String> = None;
    for (index, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let at = path.index(index);
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let version = text("apiVersion");
        if version.is_empty() {
            errors.push(Error::required(&at.child("apiVersion"), "must not be empty"));
        } else if version.split('/').count() > 2 || version.ends_with('/') {
            let why = "must be <group>/<version> or <version>";
            errors.push(Error::invalid(&at.child("apiVersion"), version, why));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(Error::required(&at.child(field), "must not be empty"));
            }
        }
        if version == "v1" && text("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(&at, owner.clone(), why));
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                Some(first) => errors.push(Error::invalid(
                    path,
                    owners.clone(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
}

fn finalizers(finalizers: &Value, path: &Path, errors: &mut Vec<Error>) {
    let all: Vec<&str> = finalizers.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for name in &all {
        errors.extend(names::is_qualified_name(name).into_iter().map(|m| Error::invalid(path, *name, m)));
    }
    if all.contains(&ORPHAN) && all.contains(&FOREGROUND) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(Error::invalid(path, finalizers.clone(), why));
    }
}

fn update(metadata: &Value, old: &Value, path: &Path, errors: &mut Vec<Error>) {
    if !old["deletionTimestamp"].is_null() {
        let had = old["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let new = metadata["finalizers"].as_array().into_iter().flatten();
        let mut extra: Vec<String> =
            new.filter(|finalizer| !had.contains(finalizer)).map(|finalizer| finalizer.to_string()).collect();
        extra.sort();
        if !extra.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                extra.join(", ")
            );
            errors.push(Error::forbidden(&path.child("finalizers"), why));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if metadata.get(field).unwrap_or(&Value::Null) != old.get(field).unwrap_or(&Value::Null) {
            errors.push(Error::invalid(&path.child(field), metadata[field].clone(), "field is immutable"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(metadata_value: Value, expected: &[&str]) {
        let errors = metadata(&json!({"metadata": metadata_value}), None, true);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn what_every_object_needs() {
        check(
            json!({}),
            &["metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"],
        );
        check(
            json!({"name": "a/b", "namespace": "default"}),
            &["metadata.name: Invalid value: \"a/b\": may not contain '/'"],
        );
    }

    #[test]
    fn one_controller_at_most() {
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "A", "name": name, "uid": "u", "controller": true});
        let errors = metadata(
            &json!({"metadata": {"name": "a", "namespace": "b", "ownerReferences": [owner("x"), owner("y")]}}),
            None,
            true,
        );
        assert!(errors[0].to_string().ends_with("references for A/x and A/y"), "{errors:?}");
    }
}
