//! Pods tolerate a node that is not ready or unreachable for five minutes, unless they say otherwise.
//!
//! Source: kubernetes `plugin/pkg/admission/defaulttolerationseconds/admission.go`.

use api::status::Status;
use serde_json::{Value, json};

use crate::admit::{AdmissionAttributes, Plugin};
use crate::identity::BoxFuture;

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn admit<'a>(&'a self, at: &'a AdmissionAttributes<'a>, pod: &'a mut Value) -> BoxFuture<'a, Result<(), Status>> {
        if at.is("", "pods") && at.operation != crate::admit::Operation::Delete {
            for taint in TAINTS {
                let tolerations = pod["spec"]["tolerations"].as_array();
                let tolerates = tolerations.into_iter().flatten().any(|t| {
                    let text = |field: &str| t[field].as_str().unwrap_or_default();
                    (text("key") == taint || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
                });
                if tolerates {
                    continue;
                }
                let toleration =
                    json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
                match pod["spec"]["tolerations"].as_array_mut() {
                    Some(list) => list.push(toleration),
                    None => pod["spec"]["tolerations"] = json!([toleration]),
                }
            }
        }
        Box::pin(async { Ok(()) })
    }
}
