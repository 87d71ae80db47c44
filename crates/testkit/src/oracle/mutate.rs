//! Objects with one thing wrong, and seeded objects with several: what is there is changed, and what could be there is added.

use api::schema::{Scalar, Schema, Shape, Type};
use serde_json::{Map, Value, json};

/// A changed object, and in words what was done to it.
#[derive(Clone, Debug)]
pub struct Mutant {
    pub label: String,
    pub object: Value,
}

/// A place in an object, with the type of what is there, where it is known.
struct Place<'a> {
    pointer: String,
    of: Option<Shape<'a>>,
}

/// Numbers that look random and are the same for the same seed. Source: Sebastiano Vigna's splitmix64.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).expect("below a usize")
    }
}

/// Every object with one thing changed at or below `root`, a JSON pointer.
pub fn each(base: &Value, of: Option<Type<'_>>, root: &str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for place in places(base, of, root) {
        let current = base.pointer(&place.pointer).expect("it was found there");
        let mut add = |what: &str, value: Option<Value>| {
            let mut object = base.clone();
            set(&mut object, &place.pointer, value);
            mutants.push(Mutant { label: format!("{} {what}", place.pointer), object });
        };
        if place.pointer != root && !place.pointer.is_empty() {
            add("absent", None);
        }
        match current {
            Value::String(text) => {
                add("a number", Some(json!(7)));
                add("empty", Some(json!("")));
                add("bad", Some(json!("Bad Value!")));
                add("long", Some(json!("a".repeat(80))));
                add("with a dash", Some(json!(format!("-{text}"))));
                add("upper case", Some(json!(text.to_uppercase())));
            }
            Value::Number(_) => {
                add("a string", Some(json!("x")));
                for number in [-1_i64, 0, 70_000] {
                    add(&number.to_string(), Some(json!(number)));
                }
                add("huge", Some(json!(1_u64 << 40)));
            }
            Value::Bool(truth) => {
                add("a string", Some(json!("true")));
                add("flipped", Some(json!(!truth)));
            }
            Value::Array(items) => {
                add("an object", Some(json!({})));
                add("empty", Some(json!([])));
                if let Some(first) = items.first() {
                    add("doubled", Some(items.iter().chain([first]).cloned().collect()));
                }
            }
            Value::Object(members) => {
                if !place.pointer.is_empty() {
                    add("a list", Some(json!([])));
                    add("empty", Some(json!({})));
                }
                let with = |name: &str, value: Value| {
                    let mut members: Map<String, Value> = members.clone();
                    members.insert(name.to_owned(), value);
                    Some(Value::Object(members))
                };
                add("with a stranger", with("stranger", json!(1)));
                match place.of {
                    Some(Shape::Object(of)) => {
                        let absent = of.fields().filter(|field| !members.contains_key(field.name()));
                        for field in absent.filter(|field| !["status", "metadata"].contains(&field.name())) {
                            add(&format!("with {}", field.name()), with(field.name(), example(field.shape(), 1)));
                        }
                    }
                    Some(Shape::Map(_)) => add("with a bad key", with("Bad Key!", json!("v"))),
                    _ => {}
                }
            }
            Value::Null => {}
        }
    }
    mutants
}

/// `count` objects with two or three things changed, by `seed`.
pub fn several(base: &Value, of: Option<Type<'_>>, root: &str, count: usize, dice: &mut Dice) -> Vec<Mutant> {
    (0..count)
        .map(|n| {
            let mut mutant = Mutant { label: format!("#{n}:"), object: base.clone() };
            for _ in 0..2 + dice.below(2) {
                let mut choices = each(&mutant.object, of, root);
                let chosen = choices.swap_remove(dice.below(choices.len()));
                mutant = Mutant { label: format!("{} {};", mutant.label, chosen.label), object: chosen.object };
            }
            mutant
        })
        .collect()
}

/// Names that some kinds take and others do not.
pub fn names() -> Vec<(&'static str, Value)> {
    vec![
        ("empty", json!("")),
        ("with capitals", json!("Bad_Name!")),
        ("with dots", json!("a..b")),
        ("dotted", json!("a.b")),
        ("with a colon", json!("a:b")),
        ("with a slash", json!("a/b")),
        ("with a per cent", json!("a%b")),
        ("of 64 letters", json!("a".repeat(64))),
        ("of 254 letters", json!("a".repeat(254))),
        ("with a dash in front", json!("-a")),
        ("with a digit in front", json!("1a")),
        ("of two dots", json!("..")),
    ]
}

fn places<'a>(base: &Value, of: Option<Type<'a>>, root: &str) -> Vec<Place<'a>> {
    let mut found = Vec::new();
    walk(base, of.map(Shape::Object), String::new(), &mut found);
    found.retain(|place| place.pointer.starts_with(root) && !is_identity(&place.pointer));
    found
}

/// What routes the request; names are changed apart.
fn is_identity(pointer: &str) -> bool {
    ["/metadata/name", "/metadata/labels/oracle"].contains(&pointer)
}

fn walk<'a>(value: &Value, of: Option<Shape<'a>>, pointer: String, found: &mut Vec<Place<'a>>) {
    found.push(Place { pointer: pointer.clone(), of });
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let of = match of {
                    Some(Shape::Object(of)) => of.field(name).map(|field| field.shape()),
                    Some(Shape::Map(element)) => Some(element.shape()),
                    _ => None,
                };
                walk(member, of, format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                let of = match of {
                    Some(Shape::List(element)) => Some(element.shape()),
                    _ => None,
                };
                walk(item, of, format!("{pointer}/{n}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A value of a shape, objects filled in to `depth`.
fn example(shape: Shape<'_>, depth: usize) -> Value {
    match shape {
        Shape::Scalar(Scalar::String | Scalar::Any) => json!("x"),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => json!(1),
        Shape::Scalar(Scalar::Bool) => json!(true),
        Shape::Scalar(Scalar::Bytes) => json!("eA=="),
        Shape::Scalar(Scalar::Quantity) => json!("1"),
        Shape::Scalar(Scalar::Time) => json!("2026-01-01T00:00:00Z"),
        Shape::Scalar(Scalar::MicroTime) => json!("2026-01-01T00:00:00.000001Z"),
        Shape::Object(of) if depth > 0 => {
            let required = of.fields().filter(|field| field.is_required());
            required.map(|field| (field.name().to_owned(), example(field.shape(), depth - 1))).collect()
        }
        Shape::Object(_) => json!({}),
        Shape::List(element) => json!([example(element.shape(), depth)]),
        Shape::Map(element) => json!({"k": example(element.shape(), depth)}),
    }
}

/// Puts a value at a JSON pointer whose parent exists, or removes what is there.
pub fn set(object: &mut Value, pointer: &str, value: Option<Value>) {
    let Some((parent, last)) = pointer.rsplit_once('/') else {
        *object = value.unwrap_or_default();
        return;
    };
    let last = last.replace("~1", "/").replace("~0", "~");
    match (object.pointer_mut(parent), value) {
        (Some(Value::Object(members)), Some(value)) => drop(members.insert(last, value)),
        (Some(Value::Object(members)), None) => drop(members.remove(&last)),
        (Some(Value::Array(items)), value) => {
            let Ok(n) = last.parse::<usize>() else { return };
            match value {
                Some(value) if n < items.len() => items[n] = value,
                Some(value) => items.push(value),
                None if n < items.len() => drop(items.remove(n)),
                None => {}
            }
        }
        _ => {}
    }
}

/// The facts of every type, from the table that the server is built with.
///
/// # Panics
/// When the table, which a test of `kinds` parses, is none.
pub fn schema() -> Schema {
    Schema::parse(include_str!("../../../kinds/facts/schema-1.37.tsv")).expect("the table is one of types")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_changes_at_a_time() {
        let base = json!({"spec": {"n": 1, "s": "a"}, "metadata": {"name": "x"}});
        let labels: Vec<String> = each(&base, None, "/spec").into_iter().map(|mutant| mutant.label).collect();
        assert!(
            labels.contains(&"/spec/n huge".to_owned()) && labels.contains(&"/spec/s absent".to_owned()),
            "{labels:?}"
        );
        assert!(labels.iter().all(|label| label.starts_with("/spec")), "{labels:?}");
    }

    #[test]
    fn a_seed_repeats_its_choices() {
        let base = json!({"spec": {"n": 1, "s": "a", "l": [1, 2], "b": true}});
        let labels = |seed| -> Vec<String> {
            several(&base, None, "", 5, &mut Dice(seed)).into_iter().map(|mutant| mutant.label).collect()
        };
        assert_eq!(labels(7), labels(7));
        assert_ne!(labels(7), labels(8));
    }
}
