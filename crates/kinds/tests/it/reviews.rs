//! Questions about access.

use expect_test::{Expect, expect};

use crate::check;

fn review(kind: &str, fields: &str, expect: Expect) {
    check(&format!("{{apiVersion: authorization.k8s.io/v1, kind: {kind}, {fields}}}"), expect);
}

#[test]
fn a_question_is_about_one_thing() {
    review(
        "SubjectAccessReview",
        "spec: {}",
        expect![[r#"
        spec: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified
        spec.user: Invalid value: "": at least one of user or group must be specified"#]],
    );
    review(
        "SubjectAccessReview",
        "metadata: {name: a}, spec: {user: u, resourceAttributes: {}, nonResourceAttributes: {}}",
        expect![[r#"
            spec: Invalid value: {}: exactly one of nonResourceAttributes or resourceAttributes must be specified
            metadata: Invalid value: {"name":"a"}: must be empty"#]],
    );
    review(
        "SelfSubjectAccessReview",
        "spec: {resourceAttributes: {labelSelector: {}}}",
        expect![
            "spec.resourceAttributes.labelSelector.requirements: Required value: when spec.resourceAttributes.labelSelector is specified, requirements or rawSelector is required"
        ],
    );
}

#[test]
fn a_local_question_stays_in_its_namespace() {
    review(
        "LocalSubjectAccessReview",
        "metadata: {namespace: a}, spec: {user: u, resourceAttributes: {namespace: b}}",
        expect![[r#"spec.resourceAttributes.namespace: Invalid value: "b": must match metadata.namespace"#]],
    );
    review(
        "LocalSubjectAccessReview",
        "metadata: {namespace: a}, spec: {groups: [g], resourceAttributes: {namespace: a}}",
        expect!["no errors"],
    );
}
