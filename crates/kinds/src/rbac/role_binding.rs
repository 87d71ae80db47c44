//! RoleBinding: who has a role in one namespace.
//!
//! Source: kubernetes `pkg/registry/rbac/rolebinding/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::table;
use crate::value::{default_text, items, items_mut, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill),
        columns: columns(),
        row: Box::new(row),
        create_on_update: true,
        ..Kind::namespaced("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
    }
}

/// Users and groups belong to this group, as roles do; service accounts to the core group.
pub(super) fn fill(binding: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = binding.get_mut("roleRef") {
        default_text(role, "apiGroup", GROUP);
    }
    for subject in items_mut(binding.get_mut("subjects")) {
        if matches!(text(&subject["kind"]), "User" | "Group") {
            default_text(subject, "apiGroup", GROUP);
        }
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
