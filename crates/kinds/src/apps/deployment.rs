//! Deployment: replica sets rolled over from one template to the next.
//!
//! Source: kubernetes `pkg/registry/apps/deployment/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy, Subresource};
use crate::table;
use crate::value::number;

pub fn kind() -> Kind {
    Kind {
        subresources: vec![Subresource::scale(), Subresource::status(Strategy::none())],
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
