//! JSON into a value.
//!
//! Of members that stand twice in their object the last one is kept, as by upstream's decoder (sigs.k8s.io/json); [`strict`]
//! says which they are. Values nest at most 128 deep (serde_json's limit; Go's is 10,000): deeper ones are an error, so that
//! whatever walks a value may recurse.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

mod strict;

pub use strict::{Of, strict};

/// What a text holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// Whether a member stands twice in its object.
    pub repeats: bool,
}

/// Parses one value that fills the whole text.
///
/// # Errors
/// When the text is no JSON, or nests too deeply.
pub fn parse(text: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut repeats = false;
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Place { repeats: &mut repeats }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed { value, repeats })
}

/// Why a text is no JSON, in Go's words for what is most often wrong.
///
/// Source: Go's `encoding/json/scanner.go`.
pub fn go_error(text: &[u8], error: &serde_json::Error) -> String {
    match text.first() {
        _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Some(first) if !b"{[\"tfn-0123456789 \t\r\n".contains(first) => {
            let shown = match char::from(*first) {
                '\'' => "\\'".to_owned(),
                first => crate::field::quoted(&first.to_string()).trim_matches('"').to_owned(),
            };
            format!("invalid character '{shown}' looking for beginning of value")
        }
        _ => error.to_string(),
    }
}

/// The place at which a value is read.
struct Place<'a> {
    repeats: &'a mut bool,
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
        while let Some(item) = items.next_element_seed(Place { repeats: &mut *self.repeats })? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Place { repeats: &mut *self.repeats })?;
            *self.repeats |= out.insert(name, value).is_some();
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_of_several_is_kept() {
        let text = br#"{"spec": {"replicas": 1, "replicas": 2, "replicas": 3}, "l": [{}, {"a": 1, "a": null}]}"#;
        let value = json!({"spec": {"replicas": 3}, "l": [{}, {"a": null}]});
        assert_eq!(parse(text).unwrap(), Parsed { value, repeats: true });
    }

    #[test]
    fn reads_what_serde_json_reads() {
        for text in [r#"{"a":[1,-1,1.5,1e300,18446744073709551615,"é\n",true,null,{}]}"#, "[]", "null", "\"\"", " 1 "]
        {
            let parsed = parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.value, serde_json::from_str::<Value>(text).unwrap());
            assert!(!parsed.repeats);
        }
    }

    #[test]
    fn errors_are_go_s() {
        let check = |text: &[u8]| go_error(text, &parse(text).unwrap_err());
        assert_eq!(check(b"x"), "invalid character 'x' looking for beginning of value");
        assert_eq!(check(b"'"), r"invalid character '\'' looking for beginning of value");
        assert_eq!(check(b"\x9e"), r"invalid character '\u009e' looking for beginning of value");
        assert_eq!(check(b"{"), "unexpected end of JSON input");
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
