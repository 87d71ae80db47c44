//! Secret: configuration that is kept from most eyes.
//!
//! Source: kubernetes `pkg/registry/core/secret/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind};
use crate::table;
use crate::value::text;

pub fn kind() -> Kind {
    Kind {
        columns: vec![
            Column::name(),
            Column::text("Type", "What its keys mean."),
            Column::text("Data", "How many keys it has."),
            Column::age(),
        ],
        row: Box::new(row),
        fields: Box::new(|secret| vec![("type", text(&secret["type"]).to_owned())]),
        ..Kind::namespaced("", "v1", "Secret", "secrets")
    }
}

fn row(secret: &Value, now: Timestamp) -> Vec<Value> {
    let keys = secret["data"].as_object().map_or(0, serde_json::Map::len);
    vec![json!(table::name(secret)), json!(text(&secret["type"])), json!(keys), table::age(secret, now)]
}
