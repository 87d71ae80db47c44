//! PriorityClass: a name for how important a pod is.
//!
//! Source: kubernetes `pkg/registry/scheduling/priorityclass/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::strategy::generation;
use crate::table;
use crate::value::{default, flag, number, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(|class| default(class, "preemptionPolicy", "PreemptLowerPriority"))
            .preparing(|class, old| generation(class, old, |_, _| false)),
        columns: vec![
            Column::name(),
            Column::number("Value", "The priority that pods of this class get."),
            Column::new("Global-Default", "boolean", "Whether pods that name no class get this one."),
            Column::age(),
            Column::text("PreemptionPolicy", "Whether its pods may displace others."),
        ],
        row: Box::new(row),
        ..Kind::cluster("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").short(&["pc"])
    }
}

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(table::name(class)),
        json!(number(&class["value"])),
        json!(flag(&class["globalDefault"])),
        table::age(class, now),
        json!(text(&class["preemptionPolicy"])),
    ]
}
