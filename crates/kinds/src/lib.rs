//! Every built-in kind, one file each, and the list of them.

pub mod apps;
pub mod coordination;
pub mod core;
mod diff;
pub mod discovery;
pub mod kind;
pub mod networking;
pub mod node;
mod place;
pub mod rbac;
pub mod review;
pub mod scheduling;
pub mod schema;
mod strategy;
pub mod table;
mod value;

use kind::Kind;

/// Every kind that this server stores or answers, in the order of discovery.
pub fn registry() -> Vec<Kind> {
    vec![
        core::binding::kind(),
        core::config_map::kind(),
        core::endpoints::kind(),
        core::event::kind(),
        core::limit_range::kind(),
        core::namespace::kind(),
        core::node::kind(),
        core::pod::kind(),
        core::pod_template::kind(),
        core::replication_controller::kind(),
        core::secret::kind(),
        core::service_account::kind(),
        core::service::kind(),
        apps::deployment::kind(),
        apps::replica_set::kind(),
        review::token_review(),
        review::self_subject_review(),
        review::subject_access_review(),
        review::local_subject_access_review(),
        review::self_subject_access_review(),
        review::self_subject_rules_review(),
        networking::ingress::kind(),
        networking::ingress_class::kind(),
        node::runtime_class::kind(),
        rbac::cluster_role::kind(),
        rbac::cluster_role_binding::kind(),
        rbac::role::kind(),
        rbac::role_binding::kind(),
        scheduling::priority_class::kind(),
        coordination::lease::kind(),
        discovery::endpoint_slice::kind(),
    ]
}

#[cfg(test)]
mod facts {
    //! The registry against the tables taken from the v1.37 schema.

    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use super::*;
    use crate::kind::{Scope, Verb};

    fn table(file: &str) -> Vec<Vec<String>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts").join(file);
        let text = std::fs::read_to_string(&path).expect("the facts stand beside the repository");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    fn verbs(verbs: &[Verb]) -> String {
        let names: BTreeSet<String> = verbs.iter().map(|verb| format!("{verb:?}").to_lowercase()).collect();
        names.into_iter().collect::<Vec<_>>().join(",")
    }

    /// Rows of `resources-1.37.tsv` as the registry has them.
    fn declared(kind: &Kind) -> Vec<Vec<String>> {
        let scope = if kind.scope == Scope::Cluster { "Cluster" } else { "Namespaced" };
        let mut rows = Vec::new();
        for version in &kind.versions {
            let group_version = if version.group.is_empty() {
                version.version.to_string()
            } else {
                format!("{}/{}", version.group, version.version)
            };
            let plural = &kind.names.resource.resource;
            let row = |name: String, of: &str, allowed: &[Verb], short: String, categories: String| {
                vec![group_version.clone(), name, of.to_owned(), scope.to_owned(), verbs(allowed), short, categories]
            };
            let names = &kind.names;
            rows.push(row(
                plural.to_string(),
                &names.kind,
                kind.verbs,
                names.short.join(","),
                names.categories.join(","),
            ));
            for sub in &kind.subresources {
                let of = sub.body.map_or(&*names.kind, |(_, _, kind)| kind);
                rows.push(row(format!("{plural}/{}", sub.name), of, sub.verbs, String::new(), String::new()));
            }
        }
        rows
    }

    #[test]
    fn names_scopes_and_verbs_are_upstreams() {
        let facts: BTreeSet<Vec<String>> = table("resources-1.37.tsv").into_iter().collect();
        for row in registry().iter().flat_map(declared) {
            assert!(facts.contains(&row), "no such row: {row:?}");
        }
    }

    #[test]
    fn columns_are_upstreams() {
        let mut facts: BTreeMap<String, Vec<[String; 4]>> = BTreeMap::new();
        for row in table("columns-1.37.tsv") {
            let [kind, rest @ ..] = <[String; 5]>::try_from(row).expect("five columns");
            facts.entry(kind).or_default().push(rest);
        }
        for kind in registry() {
            let Some(expected) = facts.get(&*kind.names.kind) else { continue };
            let columns: Vec<[String; 4]> = kind
                .columns
                .iter()
                .map(|c| [c.name.to_string(), c.kind.to_string(), c.format.to_string(), c.priority.to_string()])
                .collect();
            assert_eq!(&columns, expected, "{}", kind.names.kind);
        }
    }

    #[test]
    fn an_empty_object_has_a_cell_for_every_column() {
        for kind in registry() {
            let cells = (kind.row)(&serde_json::json!({}), jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), kind.columns.len(), "{}", kind.names.kind);
        }
    }
}
