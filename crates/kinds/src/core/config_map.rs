//! ConfigMap: configuration as files or variables.
//!
//! Source: kubernetes `pkg/registry/core/configmap/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::table;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()),
        columns: vec![Column::name(), Column::text("Data", "How many keys it has, text and binary."), Column::age()],
        row: Box::new(row),
        ..Kind::namespaced("", "v1", "ConfigMap", "configmaps").short(&["cm"])
    }
}

fn row(config: &Value, now: Timestamp) -> Vec<Value> {
    let keys = |field: &str| config[field].as_object().map_or(0, serde_json::Map::len);
    vec![json!(table::name(config)), json!(keys("data") + keys("binaryData")), table::age(config, now)]
}
