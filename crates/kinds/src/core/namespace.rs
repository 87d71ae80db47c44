//! Namespace: a scope for names.
//!
//! Source: kubernetes `pkg/registry/core/namespace/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Action, Column, Kind, Strategy, Subresource, Verb};
use crate::table;
use crate::value::text;

pub fn kind() -> Kind {
    Kind {
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
        subresources: vec![
            Subresource { name: "finalize", body: None, verbs: &[Verb::Update], action: Action::Finalize },
            Subresource::status(Strategy::none()),
        ],
        columns: vec![
            Column::name(),
            Column::text("Status", "Active, or Terminating while its objects are deleted."),
            Column::age(),
        ],
        row: Box::new(row),
        fields: Box::new(|namespace| {
            vec![
                ("status.phase", text(&namespace["status"]["phase"]).to_owned()),
                ("name", table::name(namespace).to_owned()),
            ]
        }),
        ..Kind::cluster("", "v1", "Namespace", "namespaces").short(&["ns"])
    }
}

fn row(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(namespace)), json!(text(&namespace["status"]["phase"])), table::age(namespace, now)]
}
