//! Objects in which any one value is of another type: the schema refuses them before, and nothing here may panic.

use jiff::Timestamp;
use kinds::kind::Kind;
use serde_json::{Value, json};

use crate::kind_of;

/// Every place in a value, as a JSON pointer.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                places(inner, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                places(inner, &format!("{at}/{i}"), all);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn everything(kind: &Kind, object: &Value, old: Option<&Value>) {
    let mut made = object.clone();
    (kind.strategy.default)(&mut made);
    (kind.strategy.prepare)(&mut made, old);
    (kind.strategy.validate)(&made, old);
    (kind.strategy.warnings)(&made, old);
    (kind.row)(&made, Timestamp::UNIX_EPOCH);
    (kind.fields)(&made);
    if let Some(claims) = &kind.claims {
        claims(&made);
    }
    if let Some(grace) = &kind.grace {
        grace(&made, None);
    }
}

#[test]
fn nonsense_never_panics() {
    let odd = [json!(null), json!(true), json!(-1), json!("x"), json!([null]), json!([[]]), json!({"": {}})];
    let cases = include_str!("../upstream/cases-1.37.jsonl").lines().step_by(12);
    for line in cases {
        let case: Value = serde_json::from_str(line).expect("a case is JSON");
        let (object, old) = (&case["object"], case.get("old"));
        let kind = kind_of(object);
        let mut all = Vec::new();
        places(object, "", &mut all);
        for place in &all {
            for value in &odd {
                let mut changed = object.clone();
                *changed.pointer_mut(place).expect("the place was found in it") = value.clone();
                everything(&kind, &changed, old);
                everything(&kind, object, Some(&changed));
            }
        }
    }
}
