//! How server-side apply sees the types of the schema: what is merged member by member, and what as a whole.
//!
//! Source: kube-openapi `pkg/schemaconv/smd.go`, structured-merge-diff `typed/helpers.go`.

use serde_json::Value;

use super::set::Set;
use super::step::Step;
use crate::schema::{Element, Field, ListType, Scalar, Shape, Type};

/// What a place of an object is to server-side apply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atom<'a> {
    Scalar(Scalar),
    Struct(Type<'a>),
    Map(Element<'a>),
    /// A list whose items are told apart by the keys that the field names.
    Keyed(Field<'a>, Element<'a>),
    /// A list of scalars, each of which stands in it once.
    Set(Element<'a>),
    /// Owned, compared and replaced as a whole.
    Whole(Shape<'a>),
}

impl<'a> Atom<'a> {
    pub fn of_field(field: Field<'a>) -> Self {
        match field.shape() {
            Shape::Object(_) | Shape::Map(_) if field.is_atomic() => Self::Whole(field.shape()),
            Shape::List(items) => match (field.list_type(), field.patch_strategy().merge) {
                (Some(ListType::Map), _) => Self::Keyed(field, items),
                (Some(ListType::Set), _) => Self::Set(items),
                (None, true) if field.merge_key().is_some() => Self::Keyed(field, items),
                (None, true) => Self::Set(items),
                (Some(ListType::Atomic), _) | (None, false) => Self::Whole(field.shape()),
            },
            shape => Self::of_shape(shape),
        }
    }

    /// Of what stands in a list or a map, or is a whole object.
    pub fn of_shape(shape: Shape<'a>) -> Self {
        match shape {
            Shape::Object(of) if !of.is_atomic() => Self::Struct(of),
            Shape::Map(values) => Self::Map(values),
            Shape::Scalar(scalar) if scalar != Scalar::Any => Self::Scalar(scalar),
            Shape::Object(_) | Shape::List(_) | Shape::Scalar(_) => Self::Whole(shape),
        }
    }

    /// What a child is, when it is of a kind that this place has.
    pub fn child(self, step: &Step) -> Option<Self> {
        match (self, step) {
            (Self::Struct(of), Step::Field(name)) => of.field(name).map(Self::of_field),
            (Self::Map(values), Step::Field(_)) => Some(Self::of_shape(values.shape())),
            (Self::Keyed(_, items), Step::Key(_)) | (Self::Set(items), Step::Value(_)) => {
                Some(Self::of_shape(items.shape()))
            }
            _ => None,
        }
    }

    /// How the item of a keyed list or of a set is found.
    ///
    /// # Errors
    /// When it has no keys, or is nothing that a set can hold.
    pub fn step_of(self, item: &Value) -> Result<Step, String> {
        let (field, items) = match self {
            Self::Keyed(field, items) => (field, items),
            Self::Set(_) => {
                return match item {
                    Value::Object(_) => {
                        Err("associative list without keys has an element that's a map type".to_owned())
                    }
                    Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                    Value::Null => {
                        Err("associative list without keys has an element that's an explicit null".to_owned())
                    }
                    scalar => Ok(Step::Value(scalar.clone())),
                };
            }
            _ => return Err("invalid indexing of non-associative list".to_owned()),
        };
        let members = match item {
            Value::Object(members) => members,
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let default = |key: &str| match items.shape() {
            Shape::Object(of) => {
                let field = of.field(key)?;
                field.default().or_else(|| field.zero()).filter(|default| !default.is_null())
            }
            _ => None,
        };
        let mut keys: Vec<&str> = field.list_map_keys().collect();
        if keys.is_empty() {
            keys.extend(field.merge_key());
        }
        let value = |key: &&str| Some(((*key).to_owned(), members.get(*key).or_else(|| default(key))?.clone()));
        let mut found: Vec<(String, Value)> = keys.iter().filter_map(value).collect();
        if found.is_empty() {
            return Err(format!(
                "associative list with keys has an element that omits all key fields {keys:?} (and doesn't have default values for any key fields)"
            ));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Step::Key(found))
    }
}

/// Adds the structs' fields below which a set has something: they are named by the type, so they are there anyway.
pub(super) fn with_named(set: &Set, of: Option<Atom<'_>>) -> Set {
    let mut set = set.clone();
    add_named(&mut set, of);
    set
}

fn add_named(set: &mut Set, of: Option<Atom<'_>>) {
    for (step, node) in set.iter_mut().filter(|(_, node)| !node.children.is_empty()) {
        let child = of.and_then(|of| of.child(step));
        node.member |= child.is_some() && matches!(of, Some(Atom::Struct(_)));
        add_named(&mut node.children, child);
    }
}

/// Brings a set into line with the type: what is owned as a whole today may have been owned in parts.
///
/// Source: structured-merge-diff `typed/reconcile_schema.go`.
pub(super) fn reconcile(set: &mut Set, of: Atom<'_>) {
    for (step, node) in set.iter_mut() {
        match of.child(step) {
            Some(Atom::Whole(_)) if !node.children.is_empty() => *node = super::set::Node::MEMBER,
            Some(child) => reconcile(&mut node.children, child),
            None => {}
        }
    }
}
