//! ServiceAccount: an identity for pods.
//!
//! Source: kubernetes `pkg/registry/core/serviceaccount/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Action, Column, Kind, Strategy, Subresource, Verb};
use crate::table;
use crate::value::items_mut;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().preparing(|account, _| keep_names(account)),
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

/// Of the secrets only the names count.
fn keep_names(account: &mut Value) {
    for secret in items_mut(account.get_mut("secrets")) {
        *secret = json!({"name": secret["name"]});
    }
}

fn row(account: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(account)), table::age(account, now)]
}
