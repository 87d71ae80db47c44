//! Random manifests with the errors and warnings that upstream's own validation gives them.
//!
//! `tests/upstream/oracle.go` made `cases-1.37.jsonl`: one case a line, an update where there is an `old`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kind_of;

const CASES: &str = include_str!("../upstream/cases-1.37.jsonl");

/// The part of a message that is compared: its first line, without our suggestions, and without values that are
/// objects or lists, which upstream shows with the names of its internal fields.
fn comparable(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(": did you mean").next().unwrap_or_default();
    for class in ["Invalid value: ", "Duplicate value: ", "Unsupported value: "] {
        let Some((head, tail)) = line.split_once(class) else { continue };
        if tail.starts_with(['{', '[']) || tail.starts_with("null") {
            let mut values = serde_json::Deserializer::from_str(tail).into_iter::<Value>();
            let value = values.next();
            let rest = value.map_or(tail, |_| &tail[values.byte_offset()..]);
            return format!("{head}{class}…{rest}");
        }
    }
    line.to_owned()
}

/// How often each message occurs; what this release refuses on its own account is left out.
fn counted<'a>(messages: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in messages.filter(|message| !message.contains("by coracle")) {
        *counts.entry(comparable(message)).or_default() += 1;
    }
    counts
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[test]
fn errors_and_warnings_are_upstreams() {
    let mut cases = 0;
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).expect("a case is JSON");
        let mut object = case["object"].clone();
        let strategy = kind_of(&object).strategy;
        let old = case.get("old").map(|old| {
            let mut old = old.clone();
            (strategy.default)(&mut old);
            (strategy.prepare)(&mut old, None);
            old
        });
        (strategy.default)(&mut object);
        (strategy.prepare)(&mut object, old.as_ref());
        let errors: Vec<String> = (strategy.validate)(&object, old.as_ref()).iter().map(ToString::to_string).collect();
        // Upstream's rules alone were asked, which see what its strategies take away before.
        let seen = texts(&case["errors"]).filter(|message| !message.contains(".stopSignal: "));
        let mut expected = counted(seen);
        let mut actual = counted(errors.iter().map(String::as_str));
        if old.is_some() {
            // Upstream says twice that a pod's image is wrong when it is updated.
            expected.values_mut().for_each(|count| *count = 1);
            actual.values_mut().for_each(|count| *count = 1);
        }
        assert_eq!(actual, expected, "{line}");
        if let Some(warnings) = case.get("warnings") {
            let given = (strategy.warnings)(&object, None);
            let given = given.iter().map(String::as_str).filter(|warning| !warning.starts_with("two pods will write"));
            assert_eq!(counted(given), counted(texts(warnings)), "{line}");
        }
        cases += 1;
    }
    assert!(cases > 100, "only {cases} cases");
}
