//! Brings a value into the form in which upstream's typed structs would write it.

use serde_json::{Map, Value};

use super::{Scalar, Shape, Type, time};
use crate::quantity;

impl Type<'_> {
    /// Removes what the type does not have, and writes the rest as upstream does.
    ///
    /// Members that are null go, because a struct reads them as unset; null in a list or a map is the zero value of
    /// its place. Quantities get their canonical form and times theirs, in UTC. Values of a wrong type stay:
    /// [`Type::check`] finds them.
    pub fn prune(&self, value: &mut Value) {
        if let Value::Object(members) = value {
            members.retain(|name, member| match self.field(name) {
                None => false,
                Some(_) if member.is_null() => false,
                Some(field) => {
                    conform(field.shape(), member);
                    true
                }
            });
        }
    }
}

fn conform(shape: Shape<'_>, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(of), value) => of.prune(value),
        (Shape::List(items), Value::Array(values)) => {
            for value in values {
                element(items.shape(), value);
            }
        }
        (Shape::Map(values), Value::Object(members)) => {
            for value in members.values_mut() {
                element(values.shape(), value);
            }
        }
        (Shape::Scalar(Scalar::Quantity), value) => {
            let text = match &*value {
                Value::String(text) => text.trim().to_owned(),
                other => other.to_string(),
            };
            if let Ok(text) = quantity::emitted(&text) {
                *value = Value::String(text);
            }
        }
        (Shape::Scalar(Scalar::Time), Value::String(text)) => {
            if let Ok(parsed) = time::parse(text, time::SECONDS) {
                *text = time::seconds(parsed);
            }
        }
        (Shape::Scalar(Scalar::MicroTime), Value::String(text)) => {
            if let Ok(parsed) = time::parse(text, time::MICROSECONDS) {
                *text = time::microseconds(parsed);
            }
        }
        _ => {}
    }
}

/// As [`conform`], but there is no leaving a place empty.
fn element(shape: Shape<'_>, value: &mut Value) {
    if !value.is_null() {
        return conform(shape, value);
    }
    *value = match shape {
        Shape::Object(_) => Value::Object(Map::new()),
        Shape::Scalar(Scalar::String) => "".into(),
        Shape::Scalar(Scalar::Quantity) => "0".into(),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => 0.into(),
        Shape::Scalar(Scalar::Bool) => false.into(),
        Shape::Scalar(Scalar::Bytes | Scalar::Time | Scalar::MicroTime | Scalar::Any)
        | Shape::List(_)
        | Shape::Map(_) => Value::Null,
    };
}
