//! A new node takes no pods before it is known to be ready: the node lifecycle controller takes the taint away.
//!
//! Source: kubernetes `plugin/pkg/admission/nodetaint/admission.go`.

use api::status::Status;
use serde_json::{Value, json};

use crate::admit::{AdmissionAttributes, Operation, Plugin};
use crate::identity::BoxFuture;

const KEY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn admit<'a>(&'a self, at: &'a AdmissionAttributes<'a>, node: &'a mut Value) -> BoxFuture<'a, Result<(), Status>> {
        if at.is("", "nodes") && at.operation == Operation::Create {
            let taint = json!({"key": KEY, "effect": EFFECT});
            match node["spec"]["taints"].as_array_mut() {
                Some(taints) if taints.iter().any(|one| one["key"] == KEY && one["effect"] == EFFECT) => {}
                Some(taints) => taints.push(taint),
                None => node["spec"]["taints"] = json!([taint]),
            }
        }
        Box::pin(async { Ok(()) })
    }
}
