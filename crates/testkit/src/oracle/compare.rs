//! Where two canonical answers differ, and whether a reason is known.

use serde_json::{Map, Value};

use super::Request;
use super::accepted;
use super::subjects::Subject;

/// One place at which two answers differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// A JSON pointer into the canonical answer.
    pub pointer: String,
    pub upstream: Value,
    pub ours: Value,
    /// Why it is as it should be; `None` when nobody knows.
    pub reason: Option<&'static str>,
}

/// How many answers were compared, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub compared: usize,
    pub equal: usize,
    pub accepted: usize,
    pub open: usize,
}

impl Tally {
    pub fn count(&mut self, differences: &[Difference]) {
        self.compared += 1;
        if differences.is_empty() {
            self.equal += 1;
        } else if differences.iter().all(|difference| difference.reason.is_some()) {
            self.accepted += 1;
        } else {
            self.open += 1;
        }
    }

    pub fn add(&mut self, other: Tally) {
        self.compared += other.compared;
        self.equal += other.equal;
        self.accepted += other.accepted;
        self.open += other.open;
    }
}

/// Every place at which the canonical answers to `request` differ.
pub fn differences(subject: &Subject, request: &Request, upstream: &Value, ours: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk(&by_manager(upstream), &by_manager(ours), String::new(), &mut found);
    for difference in &mut found {
        difference.reason = accepted::reason(subject, request, difference, upstream, ours);
    }
    found
}

/// An answer with its managers by name: they stand in the order of their times, which differs where a second ends between two.
fn by_manager(answer: &Value) -> Value {
    let mut answer = answer.clone();
    let managed = answer.get_mut("managed").and_then(Value::as_object_mut);
    for entries in managed.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
        entries.sort_by_key(|entry| {
            ["manager", "operation", "subresource", "apiVersion"].map(|name| entry[name].to_string())
        });
    }
    answer
}

fn walk(upstream: &Value, ours: &Value, pointer: String, found: &mut Vec<Difference>) {
    match (upstream, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            for name in names {
                let (a, b) = (member(a, name), member(b, name));
                // Absent and null say the same to no client in Go, but not to others.
                if a != b {
                    walk(
                        &a.unwrap_or(ABSENT),
                        &b.unwrap_or(ABSENT),
                        format!("{pointer}/{}", name.replace('/', "~1")),
                        found,
                    );
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(n, (a, b))| walk(a, b, format!("{pointer}/{n}"), found));
        }
        (a, b) if a == b => {}
        (a, b) => found.push(Difference { pointer, upstream: a.clone(), ours: b.clone(), reason: None }),
    }
}

/// Stands for a member that is not there.
const ABSENT: Value = Value::Null;

fn member(members: &Map<String, Value>, name: &str) -> Option<Value> {
    members.get(name).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn managers_are_compared_by_name() {
        let of = |names: [&str; 2]| json!({"managed": {"": names.map(|name| json!({"manager": name}))}});
        assert_eq!(by_manager(&of(["b", "a"])), of(["a", "b"]));
    }

    #[test]
    fn every_place_is_found() {
        let mut found = Vec::new();
        walk(
            &json!({"a": 1, "b": [1, 2], "c": {"d": 1}}),
            &json!({"a": 2, "b": [1, 3], "c": {}}),
            String::new(),
            &mut found,
        );
        let pointers: Vec<&str> = found.iter().map(|difference| difference.pointer.as_str()).collect();
        assert_eq!(pointers, ["/a", "/b/1", "/c/d"]);
    }

    #[test]
    fn an_answer_is_open_when_one_difference_is() {
        let difference = |reason| Difference { pointer: String::new(), upstream: ABSENT, ours: ABSENT, reason };
        let mut tally = Tally::default();
        tally.count(&[]);
        tally.count(&[difference(Some("known"))]);
        tally.count(&[difference(Some("known")), difference(None)]);
        assert_eq!(tally, Tally { compared: 3, equal: 1, accepted: 1, open: 1 });
    }
}
