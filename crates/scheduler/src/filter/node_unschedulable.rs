//! Cordoned nodes take only pods that tolerate it.
//!
//! Source: kubernetes `plugins/nodeunschedulable/node_unschedulable.go`.

use client::toleration::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::Refusal;
use crate::facts::{NodeState, PodFacts};

pub fn filter(pod: &PodFacts, node: &NodeState) -> Result<(), Refusal> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let tolerated = pod.tolerations.iter().any(|toleration| tolerates(toleration, &taint));
    if node.facts.is_unschedulable && !tolerated { Err(Refusal::firm("node(s) were unschedulable")) } else { Ok(()) }
}
