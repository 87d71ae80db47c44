//! JSON into a value, with the members that stood twice in their object.
//!
//! Upstream's decoder (sigs.k8s.io/json) keeps the last of them, and reports them in strict field validation. Values
//! nest at most 128 deep (serde_json's limit; Go's is 10,000): deeper ones are an error, so that whatever walks a value
//! may recurse.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::Strict;

/// What a text holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// The duplicates, at most 100, in the order of the text.
    pub duplicates: Vec<Strict>,
}

/// Upstream stops counting here.
const MOST_DUPLICATES: usize = 100;

/// Parses one value that fills the whole text.
///
/// # Errors
/// When the text is no JSON, or nests too deeply.
pub fn parse(text: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Place { at: At::Root, duplicates: &mut duplicates }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed { value, duplicates })
}

/// Where a value stands; written out only when something is wrong there.
#[derive(Clone, Copy)]
enum At<'a> {
    Root,
    Member(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Self::Root, name) => f.write_str(name),
            Self::Member(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// The place at which a value is read.
struct Place<'a> {
    at: At<'a>,
    duplicates: &'a mut Vec<Strict>,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) =
            items.next_element_seed(Place { at: At::Item(&self.at, out.len()), duplicates: self.duplicates })?
        {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let at = At::Member(&self.at, &name);
            if out.contains_key(&name) && self.duplicates.len() < MOST_DUPLICATES {
                let duplicate = Strict::Duplicate { path: at.to_string() };
                if !self.duplicates.contains(&duplicate) {
                    self.duplicates.push(duplicate);
                }
            }
            let value = members.next_value_seed(Place { at, duplicates: self.duplicates })?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_duplicates_and_keeps_the_last() {
        let text = br#"{"spec": {"replicas": 1, "replicas": 2, "replicas": 3}, "l": [{}, {"a": 1, "a": null}], "a": 1, "a": [true]}"#;
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.value, json!({"spec": {"replicas": 3}, "l": [{}, {"a": null}], "a": [true]}));
        assert_eq!(
            Strict::message(&parsed.duplicates).unwrap(),
            "strict decoding error: duplicate field \"spec.replicas\", duplicate field \"l[1].a\", duplicate field \"a\""
        );
    }

    #[test]
    fn reads_what_serde_json_reads() {
        for text in [r#"{"a":[1,-1,1.5,1e300,18446744073709551615,"é\n",true,null,{}]}"#, "[]", "null", "\"\"", " 1 "]
        {
            let parsed = parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.value, serde_json::from_str::<Value>(text).unwrap());
            assert_eq!(parsed.duplicates, []);
        }
    }

    #[test]
    fn refuses_what_is_not_one_value() {
        for text in ["", "{", "{} {}", "{\"a\":}", "\"\u{1}\"", "nul"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(129) + &"]".repeat(129);
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().starts_with("recursion limit exceeded"));
    }
}
