//! Decodes a value against a type without building it: which fields are unknown, and what has the wrong type.
//!
//! Source: sigs.k8s.io/json `internal/golang/encoding/json/{decode,kubernetes_patch}.go`. Upstream meets fields in the
//! order of the text, here they are ordered by name; [`crate::json::strict`] knows the text.

use serde_json::{Number, Value};

use super::{Field, Scalar, Schema, Shape, ShapeDefinition, Type, suggest, time};
use crate::field::quoted;
use crate::quantity::Quantity;

/// Upstream stops counting here.
const MOST_STRICT_ERRORS: usize = 100;

/// A field that the type does not have, or that stood twice in its object.
///
/// `Display` is upstream's text, such as `unknown field "spec.foo"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strict {
    Unknown {
        path: String,
        /// The field that was probably meant.
        nearest: Option<String>,
    },
    Duplicate {
        path: String,
    },
    /// Keys that stand twice in a text of YAML, each with its line.
    Yaml(Vec<String>),
}

impl std::fmt::Display for Strict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { path, .. } => write!(f, "unknown field {}", quoted(path)),
            Self::Duplicate { path } => write!(f, "duplicate field {}", quoted(path)),
            Self::Yaml(lines) => write!(f, "yaml: unmarshal errors:\n  {}", lines.join("\n  ")),
        }
    }
}

impl Strict {
    /// Joins what was found into upstream's message for `fieldValidation=Strict`, or `None` when nothing was.
    pub fn message(found: &[Self]) -> Option<String> {
        if found.is_empty() {
            return None;
        }
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        Some(format!("strict decoding error: {}", texts.join(", ")))
    }
}

/// A value that cannot be decoded into its field, in the words of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(String);

impl Type<'_> {
    /// Returns the unknown fields, at most 100.
    ///
    /// # Errors
    /// When a value has the wrong type: the first, as upstream reports it.
    pub fn check(&self, value: &Value) -> Result<Vec<Strict>, TypeError> {
        let mut walk = Walk { go: Vec::new(), within: None, path: String::new(), unknown: Vec::new(), wrong: None };
        walk.object(*self, value, Go::Named(self.go_name()))?;
        match walk.wrong {
            Some(error) => Err(error),
            None => Ok(walk.unknown),
        }
    }
}

struct Walk<'a> {
    /// The Go fields that lead to the value, without indices and keys.
    go: Vec<&'a str>,
    /// The struct that holds the innermost field.
    within: Option<&'a str>,
    /// The path in the text, with indices and keys.
    path: String,
    unknown: Vec<Strict>,
    /// The first wrong type. Decoding goes on behind it, because an unknown unit ends it with another error.
    wrong: Option<TypeError>,
}

impl<'a> Walk<'a> {
    fn object(&mut self, of: Type<'a>, value: &Value, go: Go<'a>) -> Result<(), TypeError> {
        let Some(members) = self.members(value, go) else {
            return Ok(());
        };
        let (path, within) = (self.path.len(), self.within);
        for (name, member) in members {
            self.descend(name);
            match of.field(name) {
                None => self.unknown(of, name),
                Some(field) => {
                    let depth = self.go.len();
                    self.within = Some(of.short_name());
                    self.go.extend(field.definition.via.as_deref());
                    self.go.push(field.name());
                    self.shape(field.shape(), member, Go::of_field(field))?;
                    self.go.truncate(depth);
                    self.within = within;
                }
            }
            self.path.truncate(path);
        }
        Ok(())
    }

    fn descend(&mut self, name: &str) {
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
    }

    fn unknown(&mut self, of: Type<'_>, name: &str) {
        if self.unknown.len() < MOST_STRICT_ERRORS {
            let nearest = suggest::nearest(name, of.fields().map(|field| field.name())).map(str::to_owned);
            self.unknown.push(Strict::Unknown { path: self.path.clone(), nearest });
        }
    }

    /// The members of an object; `None` for null, and for another type, which is recorded.
    fn members<'v>(&mut self, value: &'v Value, go: Go<'a>) -> Option<&'v serde_json::Map<String, Value>> {
        match value {
            Value::Object(members) => Some(members),
            Value::Null => None,
            other => {
                self.record(other, go);
                None
            }
        }
    }

    fn shape(&mut self, shape: Shape<'a>, value: &Value, go: Go<'a>) -> Result<(), TypeError> {
        if value.is_null() {
            return Ok(());
        }
        match shape {
            Shape::Object(of) => self.object(of, value, go),
            Shape::Scalar(scalar) => self.scalar(scalar, value, go),
            Shape::List(items) => {
                let Value::Array(values) = value else {
                    self.record(value, go);
                    return Ok(());
                };
                let (path, item_go) = (self.path.len(), go.of_elements(items.schema, items.definition));
                for (at, value) in values.iter().enumerate() {
                    self.path.push_str(&format!("[{at}]"));
                    self.shape(items.shape(), value, item_go)?;
                    self.path.truncate(path);
                }
                Ok(())
            }
            Shape::Map(values) => {
                let Some(members) = self.members(value, go) else {
                    return Ok(());
                };
                let (path, value_go) = (self.path.len(), go.of_elements(values.schema, values.definition));
                for (key, value) in members {
                    self.descend(key);
                    self.shape(values.shape(), value, value_go)?;
                    self.path.truncate(path);
                }
                Ok(())
            }
        }
    }

    fn scalar(&mut self, scalar: Scalar, value: &Value, go: Go<'a>) -> Result<(), TypeError> {
        match (scalar, value) {
            (Scalar::Any, _)
            | (Scalar::String, Value::String(_))
            | (Scalar::Bool, Value::Bool(_))
            | (Scalar::Number, Value::Number(_))
            | (Scalar::IntOrString, Value::String(_)) => {}
            (Scalar::Int64, Value::Number(number)) if number.is_i64() => {}
            (Scalar::Int32 | Scalar::IntOrString, Value::Number(number)) if fits_i32(number) => {}
            (Scalar::Int32 | Scalar::Int64, Value::Number(number)) => {
                self.keep(self.type_error(&format!("number {number}"), go));
            }
            (Scalar::Bytes, Value::String(text)) => {
                if let Some(at) = base64_error(text.as_bytes()) {
                    self.keep(TypeError(format!("illegal base64 data at input byte {at}")));
                }
            }
            // Types that decode themselves end the decoding with their error.
            (Scalar::IntOrString, Value::Number(number)) => {
                return Err(self.type_error(&format!("number {number}"), Go::Named("int32")));
            }
            (Scalar::IntOrString, other) => return Err(self.type_error(kind(other), Go::Named("int32"))),
            (Scalar::Quantity, other) => {
                Quantity::from_json(other).map_err(|error| TypeError(error.to_string()))?;
            }
            (Scalar::Time, Value::String(text)) => {
                time::parse(text, time::SECONDS).map_err(TypeError)?;
            }
            (Scalar::MicroTime, Value::String(text)) => {
                time::parse(text, time::MICROSECONDS).map_err(TypeError)?;
            }
            (Scalar::Time | Scalar::MicroTime, other) => return Err(self.type_error(kind(other), Go::Named("string"))),
            (Scalar::String | Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::Bool | Scalar::Bytes, other) => {
                self.record(other, go);
            }
        }
        Ok(())
    }

    fn record(&mut self, value: &Value, go: Go<'a>) {
        self.keep(self.type_error(kind(value), go));
    }

    fn keep(&mut self, error: TypeError) {
        self.wrong.get_or_insert(error);
    }

    fn type_error(&self, what: &str, go: Go<'a>) -> TypeError {
        TypeError(match self.within {
            None => format!("json: cannot unmarshal {what} into Go value of type {go}"),
            Some(within) => {
                let field = self.go.join(".");
                format!("json: cannot unmarshal {what} into Go struct field {within}.{field} of type {go}")
            }
        })
    }
}

fn fits_i32(number: &Number) -> bool {
    number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// What Go's decoder calls a value.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A Go type, written out only when an error names it.
#[derive(Clone, Copy)]
enum Go<'a> {
    Named(&'a str),
    Shape(&'a Schema, &'a ShapeDefinition),
}

impl<'a> Go<'a> {
    fn of_field(field: Field<'a>) -> Self {
        match &field.definition.go {
            Some(name) => Self::Named(name),
            None => Self::Shape(field.schema, &field.definition.shape),
        }
    }

    /// The type of the items or values, which the name of the whole tells where it is not a name of its own.
    fn of_elements(self, schema: &'a Schema, definition: &'a ShapeDefinition) -> Self {
        let named = match self {
            Self::Named(name) => {
                let value = || Some(name.strip_prefix("map[")?.split_once(']')?.1);
                name.strip_prefix("[]").or_else(value)
            }
            Self::Shape(..) => None,
        };
        named.map_or(Self::Shape(schema, definition), Self::Named)
    }
}

impl std::fmt::Display for Go<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (schema, shape) = match *self {
            Self::Named(name) => return f.write_str(name),
            Self::Shape(schema, shape) => (schema, shape),
        };
        match shape {
            ShapeDefinition::List(items) => write!(f, "[]{}", Go::Shape(schema, items)),
            ShapeDefinition::Map(values) => write!(f, "map[string]{}", Go::Shape(schema, values)),
            ShapeDefinition::Object(id) => f.write_str(schema.by_id(*id).go_name()),
            ShapeDefinition::Scalar(scalar) => f.write_str(match scalar {
                Scalar::String => "string",
                Scalar::Int32 => "int32",
                Scalar::Int64 => "int64",
                Scalar::Number => "float64",
                Scalar::Bool => "bool",
                Scalar::Bytes => "[]uint8",
                Scalar::Quantity => "resource.Quantity",
                Scalar::IntOrString => "intstr.IntOrString",
                Scalar::Time => "v1.Time",
                Scalar::MicroTime => "v1.MicroTime",
                Scalar::Any => "interface {}",
            }),
        }
    }
}

/// The offset at which Go's standard base64 decoder gives up, or `None` when it does not.
fn base64_error(text: &[u8]) -> Option<usize> {
    let newline = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let mut at = 0;
    loop {
        let mut digits = 0;
        while digits < 4 {
            let Some(byte) = text.get(at) else {
                return (digits != 0).then(|| at - digits);
            };
            at += 1;
            match byte {
                byte if newline(byte) => {}
                byte if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/') => digits += 1,
                b'=' if digits == 2 => {
                    at += text[at..].iter().take_while(|byte| newline(byte)).count();
                    match text.get(at) {
                        None => return Some(text.len()),
                        Some(b'=') => return trailing(text, at + 1),
                        Some(_) => return Some(at - 1),
                    }
                }
                b'=' if digits == 3 => return trailing(text, at),
                _ => return Some(at - 1),
            }
        }
    }
}

/// Nothing but line ends may follow the padding.
fn trailing(text: &[u8], from: usize) -> Option<usize> {
    text[from..].iter().position(|byte| !matches!(byte, b'\r' | b'\n')).map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_go_reads_it() {
        for (text, error) in [
            ("", None),
            ("aGVsbG8=", None),
            ("aGVs\nbG8=\n", None),
            ("aA==", None),
            ("hello", Some(4)),
            ("not base64!", Some(3)),
            ("aGVsbG8", Some(4)),
            ("aA=", Some(3)),
            ("aA=x", Some(2)),
            ("aA==aA==", Some(4)),
            ("====", Some(0)),
            ("a-_b", Some(1)),
        ] {
            assert_eq!(base64_error(text.as_bytes()), error, "{text}");
        }
    }
}
