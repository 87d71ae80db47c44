//! Deployment: replica sets rolled over from one template to the next.
//!
//! Source: kubernetes `pkg/registry/apps/deployment/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment_validation;
use crate::core::{pod_default, pod_support};
use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::strategy::{generation, keep_status, only_status, same, spec_changed};
use crate::table;
use crate::value::{copy, default, default_text, drop_zero, number, object, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(fill)
            .preparing(prepare)
            .validating(deployment_validation::validate)
            .warning(deployment_validation::warnings),
        subresources: vec![
            Subresource::scale(),
            Subresource::status(
                Strategy::none()
                    .defaulting(fill)
                    .preparing(prepare_status)
                    .resetting(&["spec", "metadata.labels"])
                    .validating(deployment_validation::validate_status),
            ),
        ],
        columns: vec![
            Column::name(),
            Column::text("Ready", "How many pods are ready, and how many are wanted."),
            Column::text("Up-to-date", "How many pods have the present template."),
            Column::text("Available", "How many pods have been ready for minReadySeconds."),
            Column::age(),
            Column::text("Containers", "The names of the template's containers.").wide(),
            Column::text("Images", "The images of the template's containers.").wide(),
            Column::text("Selector", "The labels of its pods.").wide(),
        ],
        row: Box::new(row),
        ..Kind::namespaced("apps", "v1", "Deployment", "deployments").short(&["deploy"]).categories(&["all"])
    }
}

fn fill(deployment: &mut Value) {
    let Some(spec) = object(deployment, "spec") else { return };
    drop_zero(spec, &["minReadySeconds", "paused"]);
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = object(spec, "strategy") {
        default_text(strategy, "type", "RollingUpdate");
        if text(&strategy["type"]) == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    }
    if let Some(template) = object(spec, "template") {
        pod_default::template(template);
    }
}

fn prepare(deployment: &mut Value, old: Option<&Value>) {
    pod_support::take_away(deployment, "/spec/template/spec");
    keep_status(deployment, old, &json!({}));
    generation(deployment, old, |new, old| {
        let annotations = |object: &Value| object["metadata"]["annotations"].clone();
        spec_changed(new, old) || !same(&annotations(new), &annotations(old))
    });
}

fn prepare_status(deployment: &mut Value, old: Option<&Value>) {
    only_status(deployment, old);
    if let (Some(metadata), Some(old)) = (deployment.get_mut("metadata"), old) {
        copy(metadata, "labels", &old["metadata"]);
    }
}

fn row(deployment: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let containers = &spec["template"]["spec"]["containers"];
    vec![
        json!(table::name(deployment)),
        json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"]))),
        json!(number(&status["updatedReplicas"])),
        json!(number(&status["availableReplicas"])),
        table::age(deployment, now),
        table::joined(containers, "name"),
        table::joined(containers, "image"),
        table::selector(&spec["selector"]),
    ]
}
