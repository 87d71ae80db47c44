//! The kinds that are questions: created, answered and never stored.
//!
//! Source: kubernetes `pkg/registry/authentication`, `pkg/registry/authorization`.

use api::field::Error;
use api::selector::validate_requirement;
use serde_json::Value;

use crate::kind::{Answer, Kind, Strategy};
use crate::place::Place;
use crate::value::is_empty;

pub fn token_review() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").answered(Answer::TokenReview)
}

pub fn self_subject_review() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews")
        .answered(Answer::SelfSubjectReview)
}

pub fn subject_access_review() -> Kind {
    Kind {
        strategy: Strategy::none().validating(subject),
        ..Kind::cluster("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews")
            .answered(Answer::SubjectAccessReview)
    }
}

pub fn local_subject_access_review() -> Kind {
    Kind {
        strategy: Strategy::none().validating(local),
        ..Kind::namespaced("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews")
            .answered(Answer::LocalSubjectAccessReview)
    }
}

pub fn self_subject_access_review() -> Kind {
    Kind {
        strategy: Strategy::none().validating(own),
        ..Kind::cluster("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
            .answered(Answer::SelfSubjectAccessReview)
    }
}

pub fn self_subject_rules_review() -> Kind {
    Kind::cluster("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews")
        .answered(Answer::SelfSubjectRulesReview)
}

fn subject(review: &Value, _old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(review);
    let mut errors = attributes(&root);
    somebody(&root, &mut errors);
    nameless(&root, "must be empty", &mut errors);
    errors
}

fn own(review: &Value, _old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(review);
    let mut errors = attributes(&root);
    nameless(&root, "must be empty", &mut errors);
    errors
}

fn local(review: &Value, _old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(review);
    let mut errors = attributes(&root);
    somebody(&root, &mut errors);
    nameless(&root, "must be empty except for namespace", &mut errors);
    let spec = root.child("spec");
    let (resource, other) = (spec.child("resourceAttributes"), spec.child("nonResourceAttributes"));
    let namespace = resource.child("namespace");
    if resource.is_set() && namespace.text() != root.child("metadata").child("namespace").text() {
        errors.push(Error::invalid(&namespace.path, namespace.text(), "must match metadata.namespace"));
    }
    if other.is_set() {
        errors.push(other.invalid("disallowed on this kind of request"));
    }
    errors
}

/// Source: kubernetes `pkg/apis/authorization/validation/validation.go`.
fn attributes(review: &Place<'_>) -> Vec<Error> {
    let spec = review.child("spec");
    let (resource, other) = (spec.child("resourceAttributes"), spec.child("nonResourceAttributes"));
    let mut errors = Vec::new();
    if resource.is_set() == other.is_set() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(Error::invalid(&spec.path, other.value.clone(), detail));
    }
    for selector in ["fieldSelector", "labelSelector"].map(|field| resource.child(field)) {
        let (raw, requirements) = (selector.child("rawSelector"), selector.child("requirements"));
        match (raw.is_empty(), requirements.is_empty()) {
            (false, false) => errors.push(raw.invalid("may not specified at the same time as requirements")),
            (true, true) if selector.is_set() => {
                let path = &selector.path;
                let detail = format!("when {path} is specified, requirements or rawSelector is required");
                errors.push(requirements.required(&detail));
            }
            _ => {}
        }
    }
    // Operators that this server does not know may be known to others.
    let of_labels = resource.child("labelSelector").child("requirements");
    let wrong = of_labels.items().flat_map(|one| validate_requirement(one.value, &one.path));
    errors.extend(wrong.filter(|error| !error.to_string().ends_with("not a valid selector operator")));
    errors
}

fn somebody(review: &Place<'_>, errors: &mut Vec<Error>) {
    let spec = review.child("spec");
    let user = spec.child("user");
    if user.is_empty() && spec.child("groups").is_empty() {
        errors.push(Error::invalid(&user.path, user.text(), "at least one of user or group must be specified"));
    }
}

/// A question has no name.
fn nameless(review: &Place<'_>, detail: &str, errors: &mut Vec<Error>) {
    let metadata = review.child("metadata");
    let ignored = |field: &str| field == "managedFields" || (field == "namespace" && detail.contains("namespace"));
    let fields = metadata.value.as_object().into_iter().flatten();
    if fields.into_iter().any(|(field, value)| !ignored(field) && !is_empty(value)) {
        errors.push(metadata.invalid(detail));
    }
}
