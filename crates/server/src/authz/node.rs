//! What a node may do: its own objects, and what the pods bound to it need.
//!
//! Source: kubernetes `plugin/pkg/auth/authorizer/node/node_authorizer.go`. Upstream keeps a graph; here the few pods of one node
//! are read when the question comes up, which is only when a pod starts or a token is renewed.

use api::key::{GroupResource, Key};
use api::selector::fields::FieldSelector;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use store::Snapshot;

use crate::authz::rbac::Rule;
use crate::identity::{Decision, User};
use crate::path::{Attributes, Resource, Target};

const PODS: GroupResource = GroupResource::new("", "pods");
const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const LEASES: &str = "kube-node-lease";

/// The node that a user is, if it is one.
pub fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix(NODE_PREFIX).filter(|_| user.is_in(NODES_GROUP))
}

pub fn authorize(snapshot: &Snapshot, user: &User, attributes: &Attributes) -> Decision {
    let Some(node) = node_of(user) else { return Decision::NoOpinion(String::new()) };
    let refusal = match &attributes.target {
        Target::Resource(at) => match decide(snapshot, node, &attributes.verb, at) {
            Some(Ok(())) => return Decision::Allow(String::new()),
            Some(Err(why)) => why,
            None if rules().iter().any(|rule| rule.allows(attributes)) => return Decision::Allow(String::new()),
            None => String::new(),
        },
        Target::Path(_) => String::new(),
    };
    Decision::NoOpinion(refusal)
}

/// `None` for resources that all nodes may use alike.
fn decide(snapshot: &Snapshot, node: &str, verb: &str, at: &Resource) -> Option<Result<(), String>> {
    let refuse = |why: &str| Some(Err(why.to_owned()));
    match (at.group.as_str(), at.resource.as_str()) {
        ("", "secrets" | "configmaps") => {
            if !matches!(verb, "get" | "list" | "watch") {
                return refuse("can only read resources of this type");
            }
            if !at.subresource.is_empty() {
                return refuse("cannot read subresource");
            }
            Some(related(snapshot, node, at))
        }
        ("", "serviceaccounts") => match (verb, at.subresource.as_str()) {
            ("create", "token") if !at.name.is_empty() => Some(related(snapshot, node, at)),
            ("get", "") => Some(related(snapshot, node, at)),
            ("create", _) => refuse("can only create token subresource of serviceaccount"),
            _ => refuse("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases") => {
            if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
                refuse("can only get, create, update, patch, or delete a node lease")
            } else if at.namespace != LEASES {
                Some(Err(format!("can only access leases in the {LEASES:?} system namespace")))
            } else if verb != "create" && at.name != node {
                refuse("can only access node lease with the same name as the requesting node")
            } else {
                Some(Ok(()))
            }
        }
        ("", "nodes") => match (verb, at.subresource.as_str()) {
            ("create", "") => Some(Ok(())),
            ("get" | "list" | "watch" | "update" | "patch", "") | ("update" | "patch", "status") if at.name == node => {
                Some(Ok(()))
            }
            ("get" | "list" | "watch", "") if at.name.is_empty() => {
                Some(Err(format!("node '{node}' cannot read all nodes, only its own Node object")))
            }
            ("get" | "list" | "watch", "") => {
                Some(Err(format!("node '{node}' cannot read '{}', only its own Node object", at.name)))
            }
            ("get" | "list" | "watch" | "update" | "patch", _) => {
                Some(Err(format!("node {node:?} cannot {verb} other nodes")))
            }
            _ => None,
        },
        ("", "pods") => decide_pod(snapshot, node, verb, at),
        _ => None,
    }
}

fn decide_pod(snapshot: &Snapshot, node: &str, verb: &str, at: &Resource) -> Option<Result<(), String>> {
    let of_this_node = || {
        let pod =
            snapshot.get(&Key::new(&PODS, &at.namespace, &at.name)).and_then(|object| object.decode::<Pod>().ok());
        let bound = pod.and_then(|pod| pod.spec?.node_name).is_some_and(|name| name == node);
        if bound { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
    };
    match (verb, at.subresource.as_str()) {
        ("list" | "watch", "") => {
            let selects_own = FieldSelector::parse(&at.field_selector).is_ok_and(|selector| {
                selector.requirements().iter().any(|one| one.field == "spec.nodeName" && one.equal && one.value == node)
            });
            Some(match at.name.as_str() {
                _ if selects_own => Ok(()),
                "" => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
                _ => of_this_node(),
            })
        }
        ("get" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => Some(of_this_node()),
        ("create", "") => Some(Ok(())),
        _ => Some(Err("nodes can only read, create and delete pods and update their status".to_owned())),
    }
}

/// Whether a pod of this node needs the object.
fn related(snapshot: &Snapshot, node: &str, at: &Resource) -> Result<(), String> {
    if at.namespace.is_empty() {
        return Err("can only read namespaced object of this type".to_owned());
    }
    if at.name.is_empty() {
        return Err("No Object name found".to_owned());
    }
    let prefix = Key::namespace_prefix(&PODS, &at.namespace);
    let pods = snapshot.range(&prefix, None);
    let needs = pods
        .filter_map(|object| object.decode::<Pod>().ok()?.spec)
        .filter(|spec| spec.node_name.as_deref() == Some(node))
        .any(|spec| refers_to(&spec, &at.resource, &at.name));
    if needs { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
}

/// Source: kubernetes `pkg/api/v1/pod/util.go`, `VisitPodSecretNames` and `VisitPodConfigmapNames`; containers of every kind count,
/// also those that a running pod gets (node/graph_populator.go, `updatePod`).
fn refers_to(spec: &PodSpec, resource: &str, name: &str) -> bool {
    let is = |other: &str| other == name;
    let containers = || {
        let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env_from, &c.env));
        ordinary.map(|c| (&c.env_from, &c.env)).chain(ephemeral)
    };
    let volumes = || spec.volumes.iter().flatten();
    let sources = || volumes().filter_map(|v| v.projected.as_ref()?.sources.as_ref()).flatten();
    match resource {
        "secrets" => {
            spec.image_pull_secrets.iter().flatten().any(|s| is(&s.name))
                || volumes().filter_map(|v| v.secret.as_ref()?.secret_name.as_deref()).any(is)
                || sources().filter_map(|s| s.secret.as_ref()).any(|s| is(&s.name))
                || containers().any(|(from, env)| {
                    from.iter().flatten().filter_map(|e| e.secret_ref.as_ref()).any(|s| is(&s.name))
                        || env
                            .iter()
                            .flatten()
                            .filter_map(|e| e.value_from.as_ref()?.secret_key_ref.as_ref())
                            .any(|s| is(&s.name))
                })
        }
        "configmaps" => {
            volumes().filter_map(|v| v.config_map.as_ref()).any(|c| is(&c.name))
                || sources().filter_map(|s| s.config_map.as_ref()).any(|c| is(&c.name))
                || containers().any(|(from, env)| {
                    from.iter().flatten().filter_map(|e| e.config_map_ref.as_ref()).any(|m| is(&m.name))
                        || env
                            .iter()
                            .flatten()
                            .filter_map(|e| e.value_from.as_ref()?.config_map_key_ref.as_ref())
                            .any(|m| is(&m.name))
                })
        }
        "serviceaccounts" => spec.service_account_name.as_deref().is_some_and(is),
        _ => false,
    }
}

/// What every node may do. Source: `bootstrappolicy/policy.go`, `NodeRules`.
fn rules() -> &'static [Rule] {
    static RULES: std::sync::LazyLock<Vec<Rule>> = std::sync::LazyLock::new(|| {
        let rule = |verbs: &[&str], groups: &[&str], resources: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            Rule { verbs: owned(verbs), api_groups: owned(groups), resources: owned(resources), ..Rule::default() }
        };
        vec![
            rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews", "localsubjectaccessreviews"]),
            rule(&["get", "list", "watch"], &[""], &["services"]),
            rule(&["get", "list", "watch"], &["node.k8s.io"], &["runtimeclasses"]),
            rule(&["create", "update", "patch"], &["", "events.k8s.io"], &["events"]),
            rule(&["get"], &[""], &["endpoints"]),
        ]
    });
    &RULES
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Whether a pod whose only container of the list `list` names objects counts for them, and for no others.
    fn check(list: &str) {
        let key = |kind: &str, name: &str| json!({"name": "x", "valueFrom": {kind: {"name": name, "key": "k"}}});
        let env = [key("secretKeyRef", "s1"), key("configMapKeyRef", "c1")];
        let env_from = [json!({"secretRef": {"name": "s2"}}), json!({"configMapRef": {"name": "c2"}})];
        let mut spec: Value = json!({"containers": []});
        spec[list] = json!([{"name": "a", "env": env, "envFrom": env_from}]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let found = |resource, names: &[&str]| -> Vec<bool> {
            names.iter().map(|name| refers_to(&spec, resource, name)).collect()
        };
        assert_eq!(found("secrets", &["s1", "s2", "c1", ""]), [true, true, false, false], "{list}");
        assert_eq!(found("configmaps", &["c1", "c2", "s1", ""]), [true, true, false, false], "{list}");
    }

    #[test]
    fn pods_are_listed_by_the_node_that_they_run_on() {
        let snapshot = store::Store::snapshot(&*store::memory::Memory::new());
        let ask = |selector: &str| {
            let (resource, field_selector) = ("pods".to_owned(), selector.to_owned());
            let at = Resource { resource, field_selector, ..Resource::default() };
            decide(&snapshot, "a", "list", &at).unwrap()
        };
        for selector in ["spec.nodeName=a", "spec.nodeName==a", "status.phase!=Failed,spec.nodeName=a"] {
            assert_eq!(ask(selector), Ok(()), "{selector}");
        }
        for selector in
            ["", "spec.nodeName=b", "spec.nodeName!=a", r"metadata.name=x\,spec.nodeName=a", "spec.nodeName=a,x"]
        {
            assert!(ask(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn containers_of_every_kind_count() {
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            check(list);
        }
    }
}
