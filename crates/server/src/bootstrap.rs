//! What a cluster begins with: namespaces, upstream's default roles, priority classes and the `kubernetes` service.
//!
//! Roles and bindings are reconciled at every start as upstream does: what is missing is put back, what was added stays, and an
//! object annotated `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone. Sources: kubernetes
//! `pkg/registry/rbac/rest/storage_rbac.go`, `pkg/registry/rbac/reconciliation`, `pkg/controlplane/controller/systemnamespaces`.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::authz::rbac::Rule;

const POLICY: &str = include_str!("bootstrap/policy-1.37.tsv");
const GROUP_VERSION: &str = "rbac.authorization.k8s.io/v1";

/// Namespaces that always exist.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// One object that a cluster begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Initial {
    pub group: &'static str,
    /// Plural.
    pub resource: &'static str,
    pub object: Value,
}

/// The default roles and bindings.
pub fn roles_and_bindings() -> &'static [Initial] {
    static ALL: LazyLock<Vec<Initial>> = LazyLock::new(|| parse(POLICY));
    &ALL
}

/// Source: kubernetes `pkg/apis/scheduling/v1/helpers.go`.
pub fn priority_classes() -> [Initial; 2] {
    let class = |name: &str, value: i64, description: &str| Initial {
        group: "scheduling.k8s.io",
        resource: "priorityclasses",
        object: json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                       "value": value, "description": description}),
    };
    [
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ]
}

fn parse(text: &str) -> Vec<Initial> {
    let mut all: Vec<Initial> = Vec::new();
    let list = |text: &str| -> Vec<String> { text.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect() };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let field = |n: usize| fields.get(n).copied().unwrap_or_default();
        match field(0) {
            "role" => all.push(role(field(1), field(2), &list(field(3)), &list(field(4)))),
            "rule" => {
                let api_groups =
                    list(field(2)).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect();
                let rule = Rule {
                    verbs: list(field(1)),
                    api_groups,
                    resources: list(field(3)),
                    resource_names: list(field(4)),
                    non_resource_urls: list(field(5)),
                };
                let role = all.last_mut().expect("a rule follows its role");
                let rules = role.object["rules"].as_array_mut().expect("a role has rules");
                rules.push(serde_json::to_value(rule).expect("a rule is JSON"));
            }
            _ => all.push(binding(field(1), field(2), field(3), field(4), field(5))),
        }
    }
    aggregate(&mut all);
    all
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn role(namespace: &str, name: &str, labels: &[String], aggregates: &[String]) -> Initial {
    let (kind, resource) = if namespace.is_empty() { ("ClusterRole", "clusterroles") } else { ("Role", "roles") };
    let mut metadata = metadata(namespace, name);
    for label in labels {
        metadata["labels"][format!("rbac.authorization.k8s.io/{label}")] = json!("true");
    }
    let mut object = json!({"apiVersion": GROUP_VERSION, "kind": kind, "metadata": metadata, "rules": []});
    if !aggregates.is_empty() {
        let selector = |label: &String| json!({"matchLabels": {format!("rbac.authorization.k8s.io/{label}"): "true"}});
        object["aggregationRule"] =
            json!({"clusterRoleSelectors": aggregates.iter().map(selector).collect::<Vec<_>>()});
    }
    Initial { group: "rbac.authorization.k8s.io", resource, object }
}

/// `subjects` are written `KIND/NAMESPACE/NAME`, separated by blanks.
fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: &str) -> Initial {
    let (kind, resource) = if namespace.is_empty() {
        ("ClusterRoleBinding", "clusterrolebindings")
    } else {
        ("RoleBinding", "rolebindings")
    };
    let subject = |text: &str| {
        let mut parts = text.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        let (kind, namespace, name) = (next(), next(), next());
        if kind == "ServiceAccount" {
            json!({"kind": kind, "namespace": namespace, "name": name})
        } else {
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
        }
    };
    let object = json!({
        "apiVersion": GROUP_VERSION, "kind": kind, "metadata": metadata(namespace, name),
        "subjects": subjects.split_whitespace().map(subject).collect::<Vec<_>>(),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
    });
    Initial { group: "rbac.authorization.k8s.io", resource, object }
}

/// Fills in the rules of roles that gather those of others, as upstream's controller does right after the start.
fn aggregate(all: &mut [Initial]) {
    // Three rounds: admin gathers edit, which gathers view.
    for _ in 0..3 {
        for i in 0..all.len() {
            let selectors =
                all[i].object["aggregationRule"]["clusterRoleSelectors"].as_array().cloned().unwrap_or_default();
            let labels: Vec<String> =
                selectors.iter().filter_map(|s| s["matchLabels"].as_object()?.keys().next().cloned()).collect();
            if labels.is_empty() {
                continue;
            }
            let mut rules: Vec<Value> = Vec::new();
            for other in all.iter().filter(|o| labels.iter().any(|l| o.object["metadata"]["labels"][l] == "true")) {
                for rule in other.object["rules"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|r| !rules.contains(r))
                    .collect::<Vec<_>>()
                {
                    rules.push(rule.clone());
                }
            }
            all[i].object["rules"] = json!(rules);
        }
    }
}

/// Brings an existing role or binding to what it must at least have; `None` when it has it already or is protected.
pub fn reconciled(existing: &Value, wanted: &Value) -> Option<Value> {
    if existing["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return None;
    }
    let mut merged = existing.clone();
    for list in ["rules", "subjects"] {
        for entry in wanted[list].as_array().into_iter().flatten() {
            let have = merged[list].as_array().is_some_and(|entries| entries.contains(entry));
            if !have {
                match merged[list].as_array_mut() {
                    Some(entries) => entries.push(entry.clone()),
                    None => merged[list] = json!([entry]),
                }
            }
        }
    }
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            merged["metadata"][field][key] = value.clone();
        }
    }
    (merged != *existing).then_some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> &'static Value {
        let found = roles_and_bindings().iter().find(|i| i.object["metadata"]["name"] == name);
        &found.unwrap_or_else(|| panic!("{name}")).object
    }

    #[test]
    fn upstreams_defaults_are_there() {
        assert_eq!(find("cluster-admin")["rules"][0], json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert_eq!(find("system:discovery")["rules"][0]["nonResourceURLs"][0], "/api");
        assert_eq!(find("system:controller:deployment-controller")["roleRef"]["name"], Value::Null);
        let bindings = roles_and_bindings().iter().filter(|i| i.resource.ends_with("bindings")).count();
        assert!(bindings > 40, "{bindings}");
    }

    #[test]
    fn admin_gathers_edit_and_view() {
        let rules = find("admin")["rules"].as_array().expect("rules");
        let allows = |verb: &str, resource: &str| {
            let has = |rule: &Value, field: &str, what: &str| {
                rule[field].as_array().is_some_and(|l| l.iter().any(|v| v == what))
            };
            rules.iter().any(|rule| has(rule, "verbs", verb) && has(rule, "resources", resource))
        };
        assert!(allows("create", "rolebindings") && allows("delete", "pods") && allows("list", "services"));
    }

    #[test]
    fn what_was_removed_comes_back_and_what_was_added_stays() {
        let wanted = find("system:discovery");
        let mut existing = wanted.clone();
        existing["rules"] = json!([{"verbs": ["get"], "nonResourceURLs": ["/mine"]}]);
        let merged = reconciled(&existing, wanted).expect("changed");
        assert_eq!(merged["rules"].as_array().map(Vec::len), Some(2));
        assert_eq!(reconciled(&merged, wanted), None);
        existing["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = json!("false");
        assert_eq!(reconciled(&existing, wanted), None);
    }
}
