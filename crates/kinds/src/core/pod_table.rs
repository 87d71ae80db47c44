//! The row of a pod: what its STATUS says is the part of `kubectl get` that people look at most.
//!
//! Source: kubernetes `pkg/printers/internalversion/printers.go`, `printPod`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::Column;
use crate::table;
use crate::value::{flag, items, number, text};

pub fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::text("Ready", "How many of the containers are ready, and how many there are."),
        Column::text("Status", "What the containers are doing, in one word."),
        Column::text("Restarts", "How often containers were restarted, and how long ago the last time was."),
        Column::age(),
        Column::text("IP", "The pod's first address.").wide(),
        Column::text("Node", "The node that it runs on.").wide(),
        Column::text("Nominated Node", "The node that is being cleared for it.").wide(),
        Column::text("Readiness Gates", "How many of its readiness gates are true, and how many there are.").wide(),
    ]
}

pub fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(then) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, table::duration(now, then))
        }
        _ => summary.restarts.to_string(),
    };
    let gates = items(&spec["readinessGates"]);
    let passed = gates.iter().filter(|gate| is_true(status, text(&gate["conditionType"]))).count();
    vec![
        json!(table::name(pod)),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        table::age(pod, now),
        table::or_none(&status["podIPs"][0]["ip"]),
        table::or_none(&spec["nodeName"]),
        table::or_none(&status["nominatedNodeName"]),
        json!(if gates.is_empty() { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) }),
    ]
}

#[derive(Default)]
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let inits = items(&spec["initContainers"]);
        let mut summary = Self {
            total: items(&spec["containers"]).len() + inits.iter().filter(|init| is_sidecar(init)).count(),
            reason: first_of([&status["reason"], &status["phase"]]),
            ..Self::default()
        };
        let gated = |condition: &Value| {
            text(&condition["type"]) == "PodScheduled" && text(&condition["reason"]) == "SchedulingGated"
        };
        if items(&status["conditions"]).iter().any(gated) {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let mut sidecars = Self::default();
        let initializing = summary.add_init_containers(pod, &mut sidecars);
        if !initializing || is_true(status, "Initialized") {
            (summary.restarts, summary.last_restart) = (sidecars.restarts, sidecars.last_restart);
            summary.add_containers(status);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if text(&status["reason"]) == "NodeLost" {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(text(&status["phase"]), "Failed" | "Succeeded") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    fn add_restarts(&mut self, container: &Value) {
        self.restarts += number(&container["restartCount"]);
        let ended = table::moment(&container["lastState"]["terminated"]["finishedAt"]);
        self.last_restart = self.last_restart.max(ended);
    }

    /// Returns whether the pod is still initializing; then the reason says where it is.
    fn add_init_containers(&mut self, pod: &Value, sidecars: &mut Self) -> bool {
        let inits = items(&pod["spec"]["initContainers"]);
        for (i, container) in items(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
            self.add_restarts(container);
            let sidecar = inits.iter().any(|init| init["name"] == container["name"] && is_sidecar(init));
            if sidecar {
                sidecars.add_restarts(container);
            }
            let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            let waits_for = text(&waiting["reason"]);
            if !terminated.is_null() && number(&terminated["exitCode"]) == 0 {
                continue;
            }
            if sidecar && flag(&container["started"]) {
                self.ready += usize::from(flag(&container["ready"]));
                continue;
            }
            self.reason = if !terminated.is_null() {
                format!("Init:{}", ended(terminated))
            } else if !waits_for.is_empty() && waits_for != "PodInitializing" {
                format!("Init:{waits_for}")
            } else {
                format!("Init:{i}/{}", inits.len())
            };
            return true;
        }
        false
    }

    fn add_containers(&mut self, status: &Value) {
        let mut running = false;
        let mut failed = None;
        for container in items(&status["containerStatuses"]).iter().rev() {
            self.add_restarts(container);
            let state = &container["state"];
            let waits_for = text(&state["waiting"]["reason"]);
            if !waits_for.is_empty() {
                waits_for.clone_into(&mut self.reason);
            } else if !state["terminated"].is_null() {
                self.reason = ended(&state["terminated"]);
                if number(&state["terminated"]["exitCode"]) != 0 {
                    failed = Some(self.reason.clone());
                }
            } else if flag(&container["ready"]) && !state["running"].is_null() {
                running = true;
                self.ready += 1;
            }
        }
        // One container that still runs keeps the pod from looking completed.
        if self.reason == "Completed" {
            if running && is_true(status, "Ready") {
                "Running".clone_into(&mut self.reason);
            } else if let Some(failed) = failed {
                self.reason = failed;
            } else if running {
                "NotReady".clone_into(&mut self.reason);
            }
        }
    }
}

fn ended(terminated: &Value) -> String {
    match (text(&terminated["reason"]), number(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn is_sidecar(init: &Value) -> bool {
    text(&init["restartPolicy"]) == "Always"
}

fn is_true(status: &Value, condition: &str) -> bool {
    let found = items(&status["conditions"]).iter().find(|one| text(&one["type"]) == condition);
    found.is_some_and(|one| text(&one["status"]) == "True")
}

fn first_of(values: [&Value; 2]) -> String {
    values.map(text).into_iter().find(|one| !one.is_empty()).unwrap_or_default().to_owned()
}
