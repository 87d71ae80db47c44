//! ConfigMap: configuration as files or variables.
//!
//! Source: kubernetes `pkg/registry/core/configmap/strategy.go`.

use api::field::{Error, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::table;
use crate::value::flag;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().validating(validate),
        columns: vec![Column::name(), Column::text("Data", "How many keys it has, text and binary."), Column::age()],
        row: Box::new(row),
        ..Kind::namespaced("", "v1", "ConfigMap", "configmaps").short(&["cm"])
    }
}

/// What a Secret or a ConfigMap may hold.
pub(super) const MAX_SIZE: usize = 1024 * 1024;

fn validate(config: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(config);
    let mut errors = Vec::new();
    if let Some(old) = old {
        unchanged(&root, old, &["data", "binaryData"], &mut errors);
    }
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in root.child(field).entries() {
            let wrong = |message: String| Error::invalid(&value.path, key, message);
            errors.extend(names::is_config_map_key(key).into_iter().map(wrong));
            if field == "data" && root.child("binaryData").child(key).is_set() {
                errors.push(Error::invalid(&value.path, key, "duplicate of key present in binaryData"));
            }
            // Base64 holds three bytes in four letters.
            size += if field == "data" { value.text().len() } else { value.text().len() / 4 * 3 };
        }
    }
    if size > MAX_SIZE {
        errors.push(Error::too_long(&Path::new(""), MAX_SIZE));
    }
    errors
}

/// Once `immutable` is set, it stays so, and so do these fields.
pub(super) fn unchanged(root: &Place<'_>, old: &Value, fields: &[&str], errors: &mut Vec<Error>) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if !flag(&old["immutable"]) {
        return;
    }
    if !root.child("immutable").is_true() {
        errors.push(root.child("immutable").forbidden(WHY));
    }
    // An entry without a value is an entry.
    let changed = fields.iter().filter(|&&field| root.child(field).value != &old[field]);
    errors.extend(changed.map(|field| root.child(field).forbidden(WHY)));
}

fn row(config: &Value, now: Timestamp) -> Vec<Value> {
    let keys = |field: &str| config[field].as_object().map_or(0, serde_json::Map::len);
    vec![json!(table::name(config)), json!(keys("data") + keys("binaryData")), table::age(config, now)]
}
