//! A node changes only itself, the status of its own pods, and its own lease.
//!
//! Source: kubernetes `plugin/pkg/admission/noderestriction/admission.go`. Labels are an allow-list here too: what a node may set is
//! what describes it, never what isolates workloads.

use api::status::Status;
use serde_json::Value;

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::authz::node::node_of;
use crate::identity::BoxFuture;

const LEASES: &str = "kube-node-lease";

pub struct NodeRestriction;

impl NodeRestriction {
    fn check(at: &AdmissionAttributes<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
        let refuse = |why: String| Err(at.forbidden(object, why));
        match (&*at.resource().group, &*at.resource().resource) {
            ("", "nodes") => Self::check_node(at, node, object),
            ("", "pods") => {
                let pod = at.old.or(object);
                let bound_here = pod.is_some_and(|pod| pod["spec"]["nodeName"] == node);
                match (at.operation, at.subresource) {
                    (Operation::Create, "") => refuse(format!(
                        "node {node:?} can only create mirror pods, which are not supported yet by coracle"
                    )),
                    (Operation::Delete, "") if !bound_here => {
                        refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                    }
                    (Operation::Update, "status") if !bound_here => refuse(format!(
                        "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                    )),
                    (Operation::Update, "status") => {
                        let labels =
                            |pod: Option<&Value>| pod.map(|pod| pod["metadata"]["labels"].clone()).unwrap_or_default();
                        if labels(at.old) == labels(object) {
                            Ok(())
                        } else {
                            refuse(format!("node {node:?} cannot update labels through pod status"))
                        }
                    }
                    (Operation::Delete, "") | (Operation::Create, "eviction") => Ok(()),
                    (operation, "") => refuse(format!(
                        "unexpected operation \"{operation:?}\", node {node:?} can only create and delete mirror pods"
                    )),
                    (_, other) => refuse(format!(
                        "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                    )),
                }
            }
            ("coordination.k8s.io", "leases") => {
                let name = object.and_then(|lease| lease["metadata"]["name"].as_str()).unwrap_or(at.name);
                if at.namespace != LEASES {
                    refuse(format!("can only access leases in the {LEASES:?} system namespace"))
                } else if name == node {
                    Ok(())
                } else {
                    refuse("can only access node lease with the same name as the requesting node".to_owned())
                }
            }
            ("", "serviceaccounts") if at.subresource == "token" => {
                let bound = object.map(|request| &request["spec"]["boundObjectRef"]);
                match bound {
                    Some(reference) if reference["kind"] == "Pod" && reference["apiVersion"] == "v1" => {
                        if reference["uid"].as_str().is_none_or(str::is_empty) {
                            return refuse("node requested token with a pod binding without a uid".to_owned());
                        }
                        Ok(())
                    }
                    Some(_) | None => refuse("node requested token not bound to a pod".to_owned()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_node(at: &AdmissionAttributes<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
        let refuse = |why: String| Err(at.forbidden(object, why));
        let name = object.and_then(|object| object["metadata"]["name"].as_str()).unwrap_or(at.name);
        if name != node {
            return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let (Some(new), old) = (object, at.old) else { return Ok(()) };
        let empty = Value::Null;
        let before = old.unwrap_or(&empty);
        let labels = |node: &Value| node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let (old_labels, new_labels) = (labels(before), labels(new));
        let mut forbidden: Vec<&str> = new_labels
            .iter()
            .filter(|(key, value)| old_labels.get(*key) != Some(value))
            .map(|(key, _)| key.as_str())
            .chain(old_labels.keys().filter(|key| !new_labels.contains_key(*key)).map(String::as_str))
            .filter(|key| !may_set(key))
            .collect();
        forbidden.sort_unstable();
        if !forbidden.is_empty() {
            let list = forbidden.join(", ");
            return refuse(match at.operation {
                Operation::Create => format!("node {node:?} is not allowed to set the following labels: {list}"),
                Operation::Update | Operation::Delete | Operation::Connect => {
                    format!("is not allowed to modify labels: {list}")
                }
            });
        }
        if old.is_some() && before["spec"]["taints"] != new["spec"]["taints"] {
            return refuse(format!("node {node:?} is not allowed to modify taints"));
        }
        if old.is_some() && before["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
            return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
        Ok(())
    }
}

/// Labels outside `kubernetes.io` are the node's own affair; within it upstream's list and the kubelet's own prefixes.
fn may_set(label: &str) -> bool {
    const OWN: [&str; 11] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
    ];
    let Some((prefix, _)) = label.split_once('/') else { return true };
    let within = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    OWN.contains(&label)
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io") && prefix != "node-restriction.kubernetes.io"
}

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn validate<'a>(
        &'a self,
        at: &'a AdmissionAttributes<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let outcome = node_of(at.user).map_or(Ok(()), |node| Self::check(at, node, object));
        Box::pin(async { outcome })
    }
}
