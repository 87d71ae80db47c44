//! Brings a value into the form in which upstream's typed structs would write it.

use serde_json::{Map, Value};

use super::{Field, Scalar, Shape, Type, time};
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

    /// Makes zero values go or come as Go's `omitempty` has it, in a value that is pruned.
    ///
    /// A list or map that upstream writes as null stays away.
    pub fn settle_zeros(&self, value: &mut Value) {
        let Value::Object(members) = value else { return };
        members.retain(|name, member| {
            let Some(field) = self.field(name) else { return true };
            settle(field.shape(), member);
            field.is_pointer() || !is_left_out(&field, member)
        });
        for field in self.fields() {
            if let Some(zero) = written_zero(&field)
                && !members.contains_key(field.name())
            {
                members.insert(field.name().to_owned(), zero);
            }
        }
    }
}

fn settle(shape: Shape<'_>, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(of), value) => of.settle_zeros(value),
        (Shape::List(items), Value::Array(values)) => values.iter_mut().for_each(|value| settle(items.shape(), value)),
        (Shape::Map(items), Value::Object(values)) => {
            values.values_mut().for_each(|value| settle(items.shape(), value))
        }
        _ => {}
    }
}

/// Whether upstream writes nothing for a value that is held in its struct.
fn is_left_out(field: &Field<'_>, value: &Value) -> bool {
    match field.shape() {
        Shape::Object(_) => field.zero().is_none() && value.as_object().is_some_and(Map::is_empty),
        // Without any, owners are given up: that is not nothing.
        Shape::List(_) if field.name() == "managedFields" => false,
        // What it writes as null stays away.
        Shape::List(_) | Shape::Map(_) | Shape::Scalar(Scalar::Bytes) => is_empty(value),
        Shape::Scalar(Scalar::String | Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::Bool) => {
            field.zero().is_none() && is_empty(value)
        }
        Shape::Scalar(Scalar::Quantity | Scalar::IntOrString | Scalar::Time | Scalar::MicroTime | Scalar::Any) => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

/// What stands in the place of a field that was not given, where upstream writes something.
fn written_zero(field: &Field<'_>) -> Option<Value> {
    let zero = field.zero().filter(|zero| !zero.is_null() && !field.is_pointer())?;
    match field.shape() {
        Shape::Object(of) => {
            let mut zero = zero.clone();
            of.settle_zeros(&mut zero);
            Some(zero)
        }
        Shape::Scalar(Scalar::String | Scalar::Int32 | Scalar::Int64 | Scalar::Bool) => Some(zero.clone()),
        Shape::Scalar(_) | Shape::List(_) | Shape::Map(_) => None,
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
