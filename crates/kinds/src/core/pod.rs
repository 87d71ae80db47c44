//! Pod: containers that run together on one node.
//!
//! Source: kubernetes `pkg/registry/core/pod/strategy.go`.

use serde_json::Value;

use crate::core::pod_table;
use crate::kind::{Action, Kind, Strategy, Subresource, Verb};
use crate::value::{flag, text};

pub fn kind() -> Kind {
    let node = |name, body, verbs| Subresource { name, body, verbs, action: Action::Node };
    Kind {
        subresources: vec![
            node("attach", Some(("", "v1", "PodAttachOptions")), &[Verb::Create, Verb::Get]),
            Subresource {
                name: "binding",
                body: Some(("", "v1", "Binding")),
                verbs: &[Verb::Create],
                action: Action::Binding,
            },
            Subresource {
                name: "eviction",
                body: Some(("policy", "v1", "Eviction")),
                verbs: &[Verb::Create],
                action: Action::Eviction,
            },
            node("exec", Some(("", "v1", "PodExecOptions")), &[Verb::Create, Verb::Get]),
            node("log", None, &[Verb::Get]),
            Subresource::status(Strategy::none()),
        ],
        columns: pod_table::columns(),
        row: Box::new(pod_table::row),
        fields: Box::new(fields),
        grace: Some(Box::new(grace)),
        ..Kind::namespaced("", "v1", "Pod", "pods").short(&["po"]).categories(&["all"])
    }
}

fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    vec![
        ("spec.nodeName", text(&spec["nodeName"]).to_owned()),
        ("spec.restartPolicy", text(&spec["restartPolicy"]).to_owned()),
        ("spec.schedulerName", text(&spec["schedulerName"]).to_owned()),
        ("spec.serviceAccountName", text(&spec["serviceAccountName"]).to_owned()),
        ("spec.hostNetwork", flag(&spec["hostNetwork"]).to_string()),
        ("status.phase", text(&status["phase"]).to_owned()),
        ("status.podIP", text(&status["podIPs"][0]["ip"]).to_owned()),
        ("status.nominatedNodeName", text(&status["nominatedNodeName"]).to_owned()),
    ]
}

/// Seconds that a pod gets to stop: none when it was never scheduled or is done.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let never_ran = text(&pod["spec"]["nodeName"]).is_empty();
    let done = matches!(text(&pod["status"]["phase"]), "Failed" | "Succeeded");
    if never_ran || done {
        return 0;
    }
    let seconds = asked.or(pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(0);
    if seconds < 0 { 1 } else { seconds }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn grants_the_pods_own_grace_unless_asked_for_another() {
        let pod = json!({"spec": {"nodeName": "a", "terminationGracePeriodSeconds": 30}});
        assert_eq!([grace(&pod, None), grace(&pod, Some(5)), grace(&pod, Some(-1))], [30, 5, 1]);
    }

    #[test]
    fn grants_none_to_a_pod_that_runs_nothing() {
        let unscheduled = json!({"spec": {"terminationGracePeriodSeconds": 30}});
        let done = json!({"spec": {"nodeName": "a"}, "status": {"phase": "Failed"}});
        assert_eq!([grace(&unscheduled, Some(9)), grace(&done, Some(9))], [0, 0]);
    }
}
