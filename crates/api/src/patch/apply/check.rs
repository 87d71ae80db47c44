//! Whether a configuration is of its type, before it is merged.
//!
//! Source: structured-merge-diff `typed/validate.go`; the values in messages are written as Go writes them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::atom::Atom;
use super::step::Step;
use crate::field::quoted;
use crate::schema::{Scalar, Shape, Type};

/// Says everything that is wrong with a configuration.
///
/// # Errors
/// In upstream's words, such as `.spec.foo: field not declared in schema`.
pub(super) fn check(of: Type<'_>, config: &Value) -> Result<(), String> {
    let mut walk = Walk { path: String::new(), errors: Vec::new() };
    walk.value(Atom::Struct(of), config);
    match walk.errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

struct Walk {
    path: String,
    errors: Vec<String>,
}

impl Walk {
    fn error(&mut self, why: impl std::fmt::Display) {
        let path = &self.path;
        self.errors.push(if path.is_empty() { why.to_string() } else { format!("{path}: {why}") });
    }

    fn below(&mut self, step: &Step, atom: Atom<'_>, value: &Value) {
        let length = self.path.len();
        self.path.push_str(&step.to_string());
        self.value(atom, value);
        self.path.truncate(length);
    }

    fn value(&mut self, atom: Atom<'_>, value: &Value) {
        if value.is_null() {
            return;
        }
        match atom {
            Atom::Scalar(scalar) => self.scalar(scalar, value),
            Atom::Struct(of) => self.object(of, value),
            Atom::Map(_) | Atom::Whole(Shape::Map(_)) => {
                let Value::Object(members) = value else {
                    return self.error(format!("expected map, got {}", go_value(value, "&")));
                };
                for (name, member) in members {
                    let step = Step::Field(name.clone());
                    if let Some(child) = child(atom, &step) {
                        self.below(&step, child, member);
                    }
                }
            }
            Atom::Keyed(..) | Atom::Set(_) => self.list(atom, value),
            Atom::Whole(Shape::List(items)) => {
                let Value::Array(values) = value else {
                    return self.error(format!("expected list, got {}", go_value(value, "&")));
                };
                for (at, item) in values.iter().enumerate() {
                    self.below(&Step::Index(at as i64), Atom::of_shape(items.shape()), item);
                }
            }
            Atom::Whole(Shape::Object(of)) => self.object(of, value),
            // Whatever JSON there is.
            Atom::Whole(Shape::Scalar(_)) => {}
        }
    }

    fn object(&mut self, of: Type<'_>, value: &Value) {
        let Value::Object(members) = value else {
            return self.error(format!("expected map, got {}", go_value(value, "&")));
        };
        for (name, member) in members {
            let step = Step::Field(name.clone());
            match of.field(name) {
                Some(field) => self.below(&step, Atom::of_field(field), member),
                None => {
                    let path = &self.path;
                    self.errors.push(format!("{path}{step}: field not declared in schema"));
                }
            }
        }
    }

    fn list(&mut self, atom: Atom<'_>, value: &Value) {
        let Value::Array(items) = value else {
            return self.error(format!("expected list, got {}", go_value(value, "&")));
        };
        let mut seen = BTreeSet::new();
        for (at, item) in items.iter().enumerate() {
            let step = match atom.step_of(item) {
                Ok(step) => step,
                // Nothing behind it has a place that could be named.
                Err(why) => return self.error(format!("element {at}: {why}")),
            };
            if seen.contains(&step) {
                self.error(format!("duplicate entries for key {step}"));
            }
            if let Some(child) = atom.child(&step) {
                self.below(&step, child, item);
            }
            seen.insert(step);
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value) {
        let expected = match scalar {
            Scalar::Int32 | Scalar::Int64 | Scalar::Number => {
                if !value.is_number() {
                    self.error(format!("expected numeric (int or float), got {}", go_type(value)));
                }
                return;
            }
            Scalar::String | Scalar::Bytes if !value.is_string() => "string",
            Scalar::Bool if !value.is_boolean() => {
                return self.error(format!("expected boolean, got {}", go_value(value, "&")));
            }
            _ if value.is_array() || value.is_object() => {
                return self.error(format!("expected any scalar, got {}", go_value(value, "&")));
            }
            _ => return,
        };
        self.error(format!("expected {expected}, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)));
    }
}

/// What stands in a map, whether it is merged or owned as a whole.
fn child<'a>(atom: Atom<'a>, step: &Step) -> Option<Atom<'a>> {
    match atom {
        Atom::Whole(Shape::Map(values)) => Some(Atom::of_shape(values.shape())),
        other => other.child(step),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As `%v`, a struct around it.
fn go_value(value: &Value, pointer: &str) -> String {
    fn plain(value: &Value) -> String {
        match value {
            Value::Null => "<nil>".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
            Value::Object(members) => {
                let members: Vec<String> =
                    members.iter().map(|(name, value)| format!("{name}:{}", plain(value))).collect();
                format!("map[{}]", members.join(" "))
            }
            other => other.to_string(),
        }
    }
    format!("{pointer}{{{}}}", plain(value))
}

/// As `%#v`.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("{}:{}", quoted(name), go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", members.join(", "))
        }
        other => other.to_string(),
    }
}
