//! Secret: configuration that is kept from most eyes.
//!
//! Source: kubernetes `pkg/registry/core/secret/strategy.go`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::table;
use crate::value::{copy, default_text, is_empty, object, remove, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare),
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

fn fill(secret: &mut Value) {
    default_text(secret, "type", "Opaque");
    // `stringData` is for writing only: it becomes data at once.
    if let Some(Value::Object(plain)) = remove(secret, "stringData")
        && !plain.is_empty()
        && let Some(data) = object(secret, "data")
    {
        for (key, value) in plain {
            set(data, &key, STANDARD.encode(text(&value)));
        }
    }
}

fn prepare(secret: &mut Value, old: Option<&Value>) {
    if let Some(old) = old
        && is_empty(&secret["type"])
    {
        copy(secret, "type", old);
    }
}

fn row(secret: &Value, now: Timestamp) -> Vec<Value> {
    let keys = secret["data"].as_object().map_or(0, serde_json::Map::len);
    vec![json!(table::name(secret)), json!(text(&secret["type"])), json!(keys), table::age(secret, now)]
}
