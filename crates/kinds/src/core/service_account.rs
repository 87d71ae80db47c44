//! ServiceAccount: an identity for pods.
//!
//! Source: kubernetes `pkg/registry/core/serviceaccount/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Action, Column, Kind, Subresource, Verb};
use crate::table;

pub fn kind() -> Kind {
    Kind {
        subresources: vec![Subresource {
            name: "token",
            body: Some(("authentication.k8s.io", "v1", "TokenRequest")),
            verbs: &[Verb::Create],
            action: Action::Token,
        }],
        columns: vec![Column::name(), Column::age()],
        row: Box::new(row),
        ..Kind::namespaced("", "v1", "ServiceAccount", "serviceaccounts").short(&["sa"])
    }
}

fn row(account: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(account)), table::age(account, now)]
}
