//! PriorityClass: a name for how important a pod is.
//!
//! Source: kubernetes `pkg/registry/scheduling/priorityclass/strategy.go`.

use api::field::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::{generation, same};
use crate::table;
use crate::value::{default, flag, number, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none()
            .defaulting(|class| default(class, "preemptionPolicy", "PreemptLowerPriority"))
            .preparing(|class, old| generation(class, old, |_, _| false))
            .validating(validate),
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

/// The highest value that is not the system's.
const HIGHEST: i64 = 1_000_000_000;

/// The classes that exist from the start, with their values.
pub const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn validate(class: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(class);
    let (name, value) = (root.child("metadata").child("name"), root.child("value"));
    let mut errors = Vec::new();
    if let Some(old) = old {
        if value.number() != number(&old["value"]) {
            errors.push(value.forbidden("may not be changed in an update."));
        }
        let policy = root.child("preemptionPolicy");
        if !same(policy.value, &old["preemptionPolicy"]) {
            errors.push(policy.invalid("field is immutable"));
        }
        return errors;
    }
    if name.text().starts_with("system-") {
        if let Some(why) = not_a_system_class(&root) {
            let reserved = "priority class names with 'system-' prefix are reserved for system use only. error: ";
            errors.push(name.forbidden(format!("{reserved}{why}")));
        }
    } else if value.number() > HIGHEST {
        errors.push(value.forbidden(format!("maximum allowed value of a user defined priority is {HIGHEST}")));
    }
    root.child("preemptionPolicy").one_of(&["PreemptLowerPriority", "Never"], &mut errors);
    errors
}

fn not_a_system_class(class: &Place<'_>) -> Option<String> {
    let name = class.child("metadata").child("name").text();
    let Some((_, value)) = SYSTEM.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if class.child("value").number() != *value {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    let global = class.child("globalDefault").is_true();
    global.then(|| format!("globalDefault of {name} PriorityClass must be false"))
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
