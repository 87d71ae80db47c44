//! How the tests of this crate write objects and read decisions.

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use crate::action::Action;

/// Reads an object from YAML.
pub fn from_yaml<K: DeserializeOwned>(yaml: &str) -> K {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).expect("tests write YAML");
    serde_json::from_value(value).expect("tests write objects of the right kind")
}

/// The decisions, one on a line.
pub fn show(actions: &[Action]) -> String {
    actions.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A moment, in seconds after an arbitrary one.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("within range")
}
