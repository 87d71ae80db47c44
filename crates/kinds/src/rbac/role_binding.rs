//! RoleBinding: who has a role in one namespace.
//!
//! Source: kubernetes `pkg/registry/rbac/rolebinding/strategy.go`.

use api::field::Error;
use api::{names, validation};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::same;
use crate::table;
use crate::value::{default_text, items, items_mut, object, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).validating(|binding, old| validate(binding, old, true)),
        columns: columns(),
        row: Box::new(row),
        name: validation::name_is_path_segment,
        create_on_update: true,
        ..Kind::namespaced("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
    }
}

const GROUP: &str = "rbac.authorization.k8s.io";

/// Users and groups belong to this group, as roles do; service accounts to the core group.
pub(super) fn fill(binding: &mut Value) {
    if let Some(role) = object(binding, "roleRef") {
        default_text(role, "apiGroup", GROUP);
    }
    for subject in items_mut(binding.get_mut("subjects")) {
        if matches!(text(&subject["kind"]), "User" | "Group") {
            default_text(subject, "apiGroup", GROUP);
        }
    }
}

/// A binding in a namespace, or a cluster role's when it is not `namespaced`.
///
/// Source: kubernetes `pkg/apis/rbac/validation/validation.go`, `ValidateRoleBinding`.
pub(super) fn validate(binding: &Value, old: Option<&Value>, namespaced: bool) -> Vec<Error> {
    let root = Place::root(binding);
    let role = root.child("roleRef");
    let mut errors = Vec::new();
    supported(&role.child("apiGroup"), &[GROUP], &mut errors);
    supported(&role.child("kind"), if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] }, &mut errors);
    role.child("name").require(names::is_path_segment_name, &mut errors);
    for one in root.child("subjects").items() {
        subject(&one, namespaced, &mut errors);
    }
    if old.is_some_and(|old| !same(role.value, &old["roleRef"])) {
        errors.push(role.invalid("field is immutable"));
    }
    errors
}

fn supported(place: &Place<'_>, values: &[&str], errors: &mut Vec<Error>) {
    if !values.contains(&place.text()) {
        errors.push(Error::not_supported(&place.path, place.text(), values));
    }
}

fn subject(subject: &Place<'_>, namespaced: bool, errors: &mut Vec<Error>) {
    let (name, group, namespace) = (subject.child("name"), subject.child("apiGroup"), subject.child("namespace"));
    name.must_be_set(errors);
    match subject.child("kind").text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                name.keep(names::is_dns1123_subdomain, errors);
            }
            supported(&group, &[""], errors);
            if !namespaced && namespace.is_empty() {
                errors.push(namespace.required(""));
            }
        }
        "User" | "Group" => supported(&group, &[GROUP], errors),
        _ => supported(&subject.child("kind"), &["ServiceAccount", "User", "Group"], errors),
    }
}

pub(super) fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::text("Role", "The role that is given."),
        Column::age(),
        Column::text("Users", "The users that have it.").wide(),
        Column::text("Groups", "The groups that have it.").wide(),
        Column::text("ServiceAccounts", "The service accounts that have it.").wide(),
    ]
}

pub(super) fn row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let (role, subjects) = (&binding["roleRef"], items(&binding["subjects"]));
    let of = |kind: &str| {
        let names = subjects.iter().filter(|subject| text(&subject["kind"]) == kind).map(|subject| {
            let name = text(&subject["name"]);
            if kind == "ServiceAccount" { format!("{}/{name}", text(&subject["namespace"])) } else { name.to_owned() }
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        json!(table::name(binding)),
        json!(format!("{}/{}", text(&role["kind"]), text(&role["name"]))),
        table::age(binding, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
