//! Rules for the metadata that all objects share.
//!
//! Source: apimachinery `pkg/api/validation/{objectmeta,generic}.go`, `pkg/apis/meta/v1/validation/validation.go`;
//! apiserver `pkg/storage/names/generate.go`. Metadata is taken as JSON whose types a schema has checked; what has
//! another type counts as unset.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::field::{Error, Path, quoted};
use crate::names::{self, Messages};
use crate::selector::validate_labels;

const ANNOTATIONS_MAX: usize = 256 * 1024;
pub const MANAGER_MAX: usize = 128;
const SUBRESOURCE_MAX: usize = 256;

/// The finalizer of a foreground deletion.
pub const FOREGROUND_DELETION: &str = "foregroundDeletion";
/// The finalizer of a deletion that leaves dependents behind.
pub const ORPHAN: &str = "orphan";

/// The rule for names of most kinds. `prefix` is true for a `generateName`, which may end in a dash.
pub fn name_is_dns_subdomain(name: &str, prefix: bool) -> Messages {
    names::is_dns1123_subdomain(&masked(name, prefix))
}

/// The rule for names of namespaces.
pub fn name_is_dns_label(name: &str, prefix: bool) -> Messages {
    names::is_dns1123_label(&masked(name, prefix))
}

/// The rule for names of services.
pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Messages {
    names::is_dns1035_label(&masked(name, prefix))
}

/// The rule for names of RBAC's objects.
pub fn name_is_path_segment(name: &str, prefix: bool) -> Messages {
    if prefix { names::is_path_segment_prefix(name) } else { names::is_path_segment_name(name) }
}

fn masked(name: &str, prefix: bool) -> String {
    if prefix { names::mask_trailing_dash(name) } else { name.to_owned() }
}

/// Returns a name that begins with `base`: five random characters are added, and at most 63 bytes result.
///
/// `random` returns a number below its argument.
pub fn generate_name(base: &str, mut random: impl FnMut(usize) -> usize) -> String {
    // Without vowels and what is mistaken for them, so that no words come out.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MOST: usize = 63 - 5;
    let end = (0..=base.len().min(MOST)).rev().find(|end| base.is_char_boundary(*end)).unwrap_or(0);
    let mut name = base[..end].to_owned();
    name.extend((0..5).map(|_| char::from(ALPHABET[random(ALPHABET.len()) % ALPHABET.len()])));
    name
}

/// Returns what is wrong with the metadata of an object about to be created. Its name has been generated already.
///
/// `name` is the kind's rule, such as [`name_is_dns_subdomain`].
pub fn validate_object_meta(
    metadata: &Value,
    namespaced: bool,
    name: impl Fn(&str, bool) -> Messages,
    path: &Path,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let invalid = |field: &str, value: &str, messages: Messages| {
        let field = path.child(field);
        messages.into_iter().map(move |message| Error::invalid(&field, value, message)).collect::<Vec<_>>()
    };
    let generate = text(metadata, "generateName");
    if !generate.is_empty() {
        errors.extend(invalid("generateName", generate, name(generate, true)));
    }
    match text(metadata, "name") {
        "" => errors.push(Error::required(&path.child("name"), "name or generateName is required")),
        own => errors.extend(invalid("name", own, name(own, false))),
    }
    match (namespaced, text(metadata, "namespace")) {
        (true, "") => errors.push(Error::required(&path.child("namespace"), "")),
        (true, namespace) => errors.extend(invalid("namespace", namespace, name_is_dns_label(namespace, false))),
        (false, "") => {}
        (false, _) => errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type")),
    }
    errors.extend(validate_generation(metadata, path));
    errors.extend(validate_labels(&texts(metadata, "labels"), &path.child("labels")));
    errors.extend(validate_annotations(&texts(metadata, "annotations"), &path.child("annotations")));
    errors.extend(validate_owner_references(&metadata["ownerReferences"], &path.child("ownerReferences")));
    errors.extend(validate_finalizers(&metadata["finalizers"], &path.child("finalizers")));
    errors.extend(validate_managed_fields(&metadata["managedFields"], &path.child("managedFields")));
    errors
}

/// Returns what is wrong with the metadata of an object about to replace `old`.
pub fn validate_object_meta_update(new: &Value, old: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    if !old["deletionTimestamp"].is_null() {
        errors.extend(validate_no_new_finalizers(new, old, &path.child("finalizers")));
    }
    if text(new, "resourceVersion").is_empty() {
        errors.push(Error::invalid(&path.child("resourceVersion"), "", "must be specified for an update"));
    }
    errors.extend(validate_generation(new, path));
    let generation = |metadata: &Value| metadata["generation"].as_i64().unwrap_or(0);
    if generation(new) < generation(old) {
        let field = path.child("generation");
        errors.push(Error::invalid(&field, generation(new), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid"] {
        if text(new, field) != text(old, field) {
            errors.push(Error::invalid(&path.child(field), text(new, field), "field is immutable"));
        }
    }
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if new[field] != old[field] {
            errors.push(Error::invalid(&path.child(field), new[field].clone(), "field is immutable"));
        }
    }
    errors.extend(validate_labels(&texts(new, "labels"), &path.child("labels")));
    errors.extend(validate_annotations(&texts(new, "annotations"), &path.child("annotations")));
    errors.extend(validate_owner_references(&new["ownerReferences"], &path.child("ownerReferences")));
    errors.extend(validate_managed_fields(&new["managedFields"], &path.child("managedFields")));
    errors
}

fn validate_generation(metadata: &Value, path: &Path) -> Option<Error> {
    let generation = metadata["generation"].as_i64().filter(|generation| *generation < 0)?;
    Some(Error::invalid(&path.child("generation"), generation, "must be greater than or equal to 0"))
}

/// Keys follow the rule for labels' keys without regard to case; all together may have 256 KiB.
pub fn validate_annotations(annotations: &BTreeMap<String, String>, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    for key in annotations.keys() {
        let messages = names::is_qualified_name(&key.to_lowercase()).into_iter();
        errors.extend(messages.map(|message| Error::invalid(path, key.clone(), message)));
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MAX {
        errors.push(Error::too_long(path, ANNOTATIONS_MAX));
    }
    errors
}

fn validate_owner_references(references: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for (at, reference) in references.as_array().into_iter().flatten().enumerate() {
        let item = path.index(at);
        let version = text(reference, "apiVersion");
        if version.is_empty() {
            errors.push(Error::required(&item.child("apiVersion"), "must not be empty"));
        } else if version.matches('/').count() > 1 || version.ends_with('/') {
            let detail = "must be <group>/<version> or <version>";
            errors.push(Error::invalid(&item.child("apiVersion"), version, detail));
        }
        for field in ["kind", "name", "uid"] {
            if text(reference, field).is_empty() {
                errors.push(Error::required(&item.child(field), "must not be empty"));
            }
        }
        if (version, text(reference, "kind")) == ("v1", "Event") {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(&item, reference.clone(), detail));
        }
        if reference["controller"] == true {
            let this = format!("{}/{}", text(reference, "kind"), text(reference, "name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                         {this}"
                    );
                    errors.push(Error::invalid(path, references.clone(), detail));
                }
            }
        }
    }
    errors
}

/// Returns what is wrong with a list of finalizers.
pub fn validate_finalizers(finalizers: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let names = strings(finalizers);
    for name in &names {
        let messages = names::is_qualified_name(name).into_iter();
        errors.extend(messages.map(|message| Error::invalid(path, *name, message)));
    }
    if names.contains(&ORPHAN) && names.contains(&FOREGROUND_DELETION) {
        let detail = format!("finalizer {ORPHAN} and {FOREGROUND_DELETION} cannot be both set");
        errors.push(Error::invalid(path, finalizers.clone(), detail));
    }
    errors
}

/// Source: kubernetes `pkg/apis/core/validation/validation.go`, `validateKubeFinalizerName`.
pub fn validate_kube_finalizers(finalizers: &Value, path: &Path) -> Vec<Error> {
    let names = strings(finalizers).into_iter().enumerate();
    let bare =
        names.filter(|(_, name)| !name.contains('/') && !["kubernetes", ORPHAN, FOREGROUND_DELETION].contains(name));
    let detail = "name is neither a standard finalizer name nor is it fully qualified";
    bare.map(|(at, name)| Error::invalid(&path.index(at), name, detail)).collect()
}

fn validate_no_new_finalizers(new: &Value, old: &Value, path: &Path) -> Option<Error> {
    let of =
        |metadata: &Value| strings(&metadata["finalizers"]).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let extra: Vec<String> = of(new).difference(&of(old)).map(|name| quoted(name)).collect();
    if extra.is_empty() {
        return None;
    }
    let extra = extra.join(", ");
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{extra}}}"
    );
    Some(Error::forbidden(path, detail))
}

fn validate_managed_fields(entries: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    for (at, entry) in entries.as_array().into_iter().flatten().enumerate() {
        let item = path.index(at);
        match text(entry, "operation") {
            "" => errors.push(Error::required(&item.child("operation"), "must not be empty")),
            "Apply" | "Update" => {}
            other => errors.push(Error::not_supported(&item.child("operation"), other, &["Apply", "Update"])),
        }
        let format = text(entry, "fieldsType");
        if !matches!(format, "" | "FieldsV1") {
            errors.push(Error::invalid(&item.child("fieldsType"), format, "must be `FieldsV1`"));
        }
        errors.extend(validate_field_manager(text(entry, "manager"), &item.child("manager")));
        if text(entry, "subresource").len() > SUBRESOURCE_MAX {
            errors.push(Error::too_long(&item.child("subresource"), SUBRESOURCE_MAX));
        }
    }
    errors
}

/// Returns what is wrong with the name of a field manager, as in the query of a write; empty is unset.
pub fn validate_field_manager(name: &str, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    if name.len() > MANAGER_MAX {
        errors.push(Error::too_long(path, MANAGER_MAX));
    }
    for (at, c) in name.char_indices().filter(|(_, c)| c.is_control()) {
        let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.push(Error::invalid(path, name, detail));
    }
    errors
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn texts(object: &Value, field: &str) -> BTreeMap<String, String> {
    let members = object[field].as_object().into_iter().flatten();
    members.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(errors: Vec<Error>, expected: &[&str]) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.starts_with(expected), "{error}\n{expected}");
        }
    }

    fn create(metadata: Value, namespaced: bool) -> Vec<Error> {
        validate_object_meta(&metadata, namespaced, name_is_dns_subdomain, &Path::new("metadata"))
    }

    fn update(new: Value, old: Value) -> Vec<Error> {
        validate_object_meta_update(&new, &old, &Path::new("metadata"))
    }

    #[test]
    fn names_and_namespaces() {
        check(create(json!({"name": "a.b", "namespace": "c"}), true), &[]);
        check(create(json!({"name": "a", "generateName": "a-", "namespace": "c"}), true), &[]);
        check(
            create(json!({"generateName": "A_"}), true),
            &[
                "metadata.generateName: Invalid value: \"A_\": a lowercase RFC 1123 subdomain must consist of",
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value",
            ],
        );
        check(
            create(json!({"name": "a/b", "namespace": "c.d"}), true),
            &[
                "metadata.name: Invalid value: \"a/b\": a lowercase RFC 1123 subdomain must consist of",
                "metadata.namespace: Invalid value: \"c.d\": must not contain dots",
            ],
        );
        check(
            create(json!({"name": "a", "namespace": "b"}), false),
            &["metadata.namespace: Forbidden: not allowed on this type"],
        );
    }

    #[test]
    fn labels_annotations_and_generation() {
        check(
            create(
                json!({"name": "a", "generation": -1, "labels": {"a b": "c", "d": "-"}, "annotations": {"UPPER/ok": "", "a b": ""}}),
                false,
            ),
            &[
                "metadata.generation: Invalid value: -1: must be greater than or equal to 0",
                "metadata.labels: Invalid value: \"a b\": name part must consist of",
                "metadata.labels: Invalid value: \"-\": a valid label must be an empty string or",
                "metadata.annotations: Invalid value: \"a b\": name part must consist of",
            ],
        );
        let annotations = |size| json!({"name": "a", "annotations": {"a": "x".repeat(size)}});
        check(create(annotations(256 * 1024 - 1), false), &[]);
        check(
            create(annotations(256 * 1024), false),
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        );
    }

    #[test]
    fn owners() {
        let owner = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "name": "n", "uid": "u", "controller": true});
        check(create(json!({"name": "a", "ownerReferences": [owner("Pod")]}), false), &[]);
        check(
            create(
                json!({"name": "a", "ownerReferences": [{}, {"apiVersion": "a/b/c", "kind": "K", "name": "n", "uid": "u"}]}),
                false,
            ),
            &[
                "metadata.ownerReferences[0].apiVersion: Required value: must not be empty",
                "metadata.ownerReferences[0].kind: Required value: must not be empty",
                "metadata.ownerReferences[0].name: Required value: must not be empty",
                "metadata.ownerReferences[0].uid: Required value: must not be empty",
                "metadata.ownerReferences[1].apiVersion: Invalid value: \"a/b/c\": must be <group>/<version> or <version>",
            ],
        );
        let two = create(json!({"name": "a", "ownerReferences": [owner("Event"), owner("Pod")]}), false);
        assert!(two[0].detail == "/v1, Kind=Event is disallowed from being an owner");
        assert!(two[1].detail.ends_with("Found \"true\" in references for Event/n and Pod/n"), "{}", two[1]);
    }

    #[test]
    fn finalizers() {
        check(
            create(json!({"name": "a", "finalizers": ["example.com/x", "a b", "orphan", "foregroundDeletion"]}), false),
            &[
                "metadata.finalizers: Invalid value: \"a b\": name part must consist of",
                "metadata.finalizers: Invalid value: [\"example.com/x\",\"a b\",\"orphan\",\"foregroundDeletion\"]: finalizer \
                 orphan and foregroundDeletion cannot be both set",
            ],
        );
        let dying =
            |finalizers: Value| json!({"resourceVersion": "1", "deletionTimestamp": "t", "finalizers": finalizers});
        check(update(dying(json!(["a"])), dying(json!(["a", "b"]))), &[]);
        check(
            update(dying(json!(["c", "a", "b"])), dying(json!(["a"]))),
            &[
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
               finalizers []string{\"b\", \"c\"}",
            ],
        );
    }

    #[test]
    fn updates_keep_identity() {
        let old = json!({
            "name": "a", "namespace": "b", "uid": "c", "generation": 2, "resourceVersion": "1",
            "creationTimestamp": "2026-11-23T12:00:00Z",
        });
        check(update(old.clone(), old.clone()), &[]);
        check(
            update(json!({"name": "x", "generation": 1, "deletionGracePeriodSeconds": 30}), old),
            &[
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.name: Invalid value: \"x\": field is immutable",
                "metadata.namespace: Invalid value: \"\": field is immutable",
                "metadata.uid: Invalid value: \"\": field is immutable",
                "metadata.creationTimestamp: Invalid value: null: field is immutable",
                "metadata.deletionGracePeriodSeconds: Invalid value: 30: field is immutable",
            ],
        );
    }

    #[test]
    fn managed_fields() {
        check(
            create(
                json!({"name": "a", "managedFields": [
                    {"operation": "Update", "fieldsType": "FieldsV1", "manager": "kubectl"},
                    {"operation": "Put", "fieldsType": "V2", "manager": "a\nb", "subresource": "s".repeat(257)},
                    {"manager": "m".repeat(129)},
                ]}),
                false,
            ),
            &[
                "metadata.managedFields[1].operation: Unsupported value: \"Put\": supported values: \"Apply\", \"Update\"",
                "metadata.managedFields[1].fieldsType: Invalid value: \"V2\": must be `FieldsV1`",
                "metadata.managedFields[1].manager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
                "metadata.managedFields[1].subresource: Too long: may not be more than 256 bytes",
                "metadata.managedFields[2].operation: Required value: must not be empty",
                "metadata.managedFields[2].manager: Too long: may not be more than 128 bytes",
            ],
        );
    }

    #[test]
    fn generated_names_fit_a_label() {
        let mut next = 0;
        let mut count = |below: usize| {
            next += 1;
            (next - 1) % below
        };
        assert_eq!(generate_name("web-", &mut count), "web-bcdfg");
        assert_eq!(generate_name("", &mut count), "hjklm");
        assert_eq!(generate_name(&"a".repeat(100), &mut count).len(), 63);
        assert_eq!(generate_name(&"ä".repeat(40), |_| 0), format!("{}bbbbb", "ä".repeat(29)));
    }
}
