//! What strict field validation finds in a text: fields that a type does not have, and fields that stand twice, in the
//! order in which they stand.
//!
//! Source: sigs.k8s.io/json `internal/golang/encoding/json/{decode,kubernetes_patch}.go`.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::schema::{Shape, Strict, nearest};

/// Upstream stops counting here.
const MOST: usize = 100;

/// What is expected at a place of the text.
#[derive(Clone, Copy)]
pub enum Of<'a> {
    Shape(Shape<'a>),
    /// Anything: only what stands twice is found.
    Anything,
    /// The operations of a JSON patch. Source: apiserver `pkg/endpoints/handlers/patch.go`, `jsonPatchOp`.
    Operations,
    Operation,
    /// What decodes itself, and what is not decoded at all.
    Skipped,
}

impl<'a> Of<'a> {
    fn items(self) -> Self {
        match self {
            Self::Shape(Shape::List(items)) => Self::Shape(items.shape()),
            Self::Anything => Self::Anything,
            Self::Operations => Self::Operation,
            Self::Shape(_) | Self::Operation | Self::Skipped => Self::Skipped,
        }
    }

    /// The member of an object; `None` for one that the type does not have, with the name that was probably meant.
    fn member(self, name: &str) -> Result<Self, Option<&'a str>> {
        match self {
            Self::Shape(Shape::Object(of)) => match of.field(name) {
                Some(field) => Ok(Self::Shape(field.shape())),
                None => Err(nearest(name, of.fields().map(|field| field.name()))),
            },
            Self::Shape(Shape::Map(values)) => Ok(Self::Shape(values.shape())),
            Self::Anything => Ok(Self::Anything),
            Self::Operation => match name {
                "op" | "path" | "from" => Ok(Self::Skipped),
                "value" => Ok(Self::Anything),
                _ => Err(None),
            },
            Self::Shape(_) | Self::Operations | Self::Skipped => Ok(Self::Skipped),
        }
    }
}

/// Finds the first 100 of them, each once. The text is one that [`super::parse`] takes.
pub fn strict(text: &[u8], of: Of<'_>) -> Vec<Strict> {
    let mut found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    // The text has been parsed before: an error behind what was found does not matter.
    Place { of, found: &mut found }.deserialize(&mut deserializer).ok();
    found.all
}

#[derive(Default)]
struct Found {
    path: String,
    all: Vec<Strict>,
}

impl Found {
    fn push(&mut self, problem: Strict) {
        if self.all.len() < MOST && !self.all.contains(&problem) {
            self.all.push(problem);
        }
    }
}

struct Place<'a, 'f> {
    of: Of<'a>,
    found: &'f mut Found,
}

impl<'de> DeserializeSeed<'de> for Place<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { of, found } = self;
        let (of, length) = (of.items(), found.path.len());
        for at in 0.. {
            found.path.push_str(&format!("[{at}]"));
            let item = items.next_element_seed(Place { of, found })?;
            found.path.truncate(length);
            if item.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { of, found } = self;
        if matches!(of, Of::Skipped | Of::Shape(Shape::Scalar(_))) {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        let (mut seen, length) = (HashSet::new(), found.path.len());
        while let Some(name) = members.next_key::<String>()? {
            if length != 0 {
                found.path.push('.');
            }
            found.path.push_str(&name);
            let path = || found.path.clone();
            match of.member(&name) {
                Ok(of) => {
                    if seen.contains(&name) {
                        found.push(Strict::Duplicate { path: path() });
                    }
                    seen.insert(name);
                    members.next_value_seed(Place { of, found })?;
                }
                Err(nearest) => {
                    found.push(Strict::Unknown { path: path(), nearest: nearest.map(str::to_owned) });
                    members.next_value::<IgnoredAny>()?;
                }
            }
            found.path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    fn check(text: &str, of: Of<'_>, expected: &[&str]) {
        let found: Vec<String> = strict(text.as_bytes(), of).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn duplicates_are_found_where_they_stand() {
        let text = r#"{"spec": {"b": 1, "b": 2, "b": 3}, "l": [{}, {"a": 1, "a": null}], "a": 1, "a": [true]}"#;
        let duplicates = [r#"duplicate field "spec.b""#, r#"duplicate field "l[1].a""#, r#"duplicate field "a""#];
        check(text, Of::Anything, &duplicates);
        check(text, Of::Skipped, &[]);
    }

    #[test]
    fn unknown_fields_and_duplicates_come_in_the_order_of_the_text() {
        let schema =
            Schema::parse("a.Top\n\tspec\ta.Spec\na.Spec\n\tany\tany\n\tlabels\t{}string\n\treplicas\tint32\n")
                .unwrap();
        let of = Of::Shape(Shape::Object(schema.get("a.Top").unwrap()));
        check(
            r#"{"spec": {"zz": {"a": 1, "a": 2}, "zz": 1, "replicas": 2, "aa": 0, "replicas": 3}, "spec": {"bb": 1}}"#,
            of,
            &[
                r#"unknown field "spec.zz""#,
                r#"unknown field "spec.aa""#,
                r#"duplicate field "spec.replicas""#,
                r#"duplicate field "spec""#,
                r#"unknown field "spec.bb""#,
            ],
        );
        check(
            r#"{"spec": {"labels": {"x": "", "x": ""}, "any": {"x": 1, "x": 2}}}"#,
            of,
            &[r#"duplicate field "spec.labels.x""#],
        );
    }

    #[test]
    fn operations_of_json_patches_have_four_members() {
        check(
            r#"[{"op": "test", "op": "add", "path": "/a", "value": {"b": 1, "b": 2}, "foo": 1}]"#,
            Of::Operations,
            &[r#"duplicate field "[0].op""#, r#"duplicate field "[0].value.b""#, r#"unknown field "[0].foo""#],
        );
    }

    #[test]
    fn a_hundred_are_enough() {
        let members: Vec<String> = (0..150).map(|n| format!("\"{n}\": 1, \"{n}\": 1")).collect();
        assert_eq!(strict(format!("{{{}}}", members.join(",")).as_bytes(), Of::Anything).len(), 100);
    }
}
