//! What ReplicaSets, Deployments and ReplicationControllers have in common: a selector, and a template that it must match.
//!
//! Source: kubernetes `pkg/apis/apps/validation/validation.go`.

use std::collections::BTreeMap;

use api::field::Error;
use api::names;
use api::selector::{Selector, validate_label_selector};
use serde_json::Value;

use crate::core::pod_validation;
use crate::place::Place;
use crate::strategy::same;

/// The selector, and the template when the selector can be understood.
pub(super) fn validate(spec: &Place<'_>, old: Option<&Value>, errors: &mut Vec<Error>) {
    let selector = spec.child("selector");
    if !selector.is_set() {
        errors.push(selector.required(""));
    } else {
        errors.extend(validate_label_selector(selector.value, &selector.path));
        if selector.child("matchLabels").is_empty() && selector.child("matchExpressions").is_empty() {
            errors.push(selector.invalid("empty selector is invalid for deployment"));
        }
    }
    match Selector::from_json(selector.value) {
        Ok(matcher) => template(&spec.child("template"), &matcher, "ReplicaSet", errors),
        Err(_) => errors.push(selector.invalid("invalid label selector")),
    }
    if let Some(old) = old
        && !same(selector.value, &old["spec"]["selector"])
    {
        errors.push(selector.invalid("field is immutable"));
    }
}

/// A template whose pods live until they are deleted, of an object of this kind.
pub(crate) fn template(template: &Place<'_>, selector: &Selector, kind: &str, errors: &mut Vec<Error>) {
    let labels = template.child("metadata").child("labels");
    let map: BTreeMap<String, String> =
        labels.entries().map(|(key, value)| (key.to_owned(), value.text().to_owned())).collect();
    if !selector.is_empty() && !selector.matches(&map) {
        errors.push(labels.invalid("`selector` does not match template `labels`"));
    }
    pod_validation::template(template, errors);
    let spec = template.child("spec");
    if !spec.child("restartPolicy").is("Always") {
        errors.push(spec.child("restartPolicy").not_supported(&["Always"]));
    }
    if spec.child("activeDeadlineSeconds").is_set() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(spec.child("activeDeadlineSeconds").forbidden(detail));
    }
}

/// Counts are not negative, and no part is greater than the whole.
pub(crate) fn counts(status: &Place<'_>, parts: &[&str], others: &[&str], errors: &mut Vec<Error>) {
    for field in ["replicas"].iter().chain(parts).chain(others) {
        status.child(field).not_negative(errors);
    }
    for field in parts {
        let part = status.child(field);
        if part.number() > status.child("replicas").number() {
            errors.push(part.invalid("cannot be greater than status.replicas"));
        }
    }
    let available = status.child("availableReplicas");
    if available.number() > status.child("readyReplicas").number() {
        errors.push(available.invalid("cannot be greater than readyReplicas"));
    }
}

/// The pods' names begin with this object's name, and are host names.
pub(super) fn name_warning(object: &Value) -> Option<String> {
    let messages = names::is_dns1123_label(crate::table::name(object));
    (!messages.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
             label is recommended: [{}]",
            messages.join(" ")
        )
    })
}
