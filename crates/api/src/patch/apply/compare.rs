//! Which fields a value has, and which of them another one adds, changes and removes.
//!
//! Source: structured-merge-diff `typed/{compare,tofieldset}.go`. Upstream compares Go structs, which write some fields
//! even when nobody set them ([`crate::schema::Field::zero`]); here those count as being there.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::atom::Atom;
use super::set::{Node, Set};
use super::step::{self, Step};
use crate::schema::Type;

/// Whether every item has the key by which it is found, so that it can be said who owns it.
///
/// Source: structured-merge-diff `typed/helpers.go`, `keyedAssociativeListItemToPathElement`.
pub fn has_keys(atom: Atom<'_>, value: &Value) -> bool {
    match (atom, value) {
        (Atom::Struct(of), Value::Object(members)) => members
            .iter()
            .all(|(name, value)| of.field(name).is_none_or(|field| has_keys(Atom::of_field(field), value))),
        (Atom::Map(values), Value::Object(members)) => {
            members.values().all(|value| has_keys(Atom::of_shape(values.shape()), value))
        }
        (Atom::Keyed(_, values), Value::Array(items)) => {
            items.iter().all(|item| atom.step_of(item).is_ok() && has_keys(Atom::of_shape(values.shape()), item))
        }
        _ => true,
    }
}

/// What makes one object another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Comparison {
    /// Compares two objects.
    pub fn new(of: Type<'_>, old: &Value, new: &Value) -> Self {
        let Diff { added, modified, removed } = compare(Atom::Struct(of), Some(old), Some(new));
        Self { added: added.children, modified: modified.children, removed: removed.children }
    }

    /// Takes out fields with all that is in them.
    #[must_use]
    pub fn without(self, fields: &Set) -> Self {
        Self {
            added: self.added.without(fields),
            modified: self.modified.without(fields),
            removed: self.removed.without(fields),
        }
    }
}

/// Every leaf and every item that an object has.
pub fn fields(of: Type<'_>, object: &Value) -> Set {
    fields_of(Atom::Struct(of), object).children
}

fn fields_of(atom: Atom<'_>, value: &Value) -> Node {
    let mut out = Node::default();
    match (atom, value) {
        (Atom::Scalar(_) | Atom::Whole(_), _) => out.member = true,
        (Atom::Struct(_) | Atom::Map(_), Value::Object(members)) => {
            for (name, value) in members {
                let step = Step::Field(name.clone());
                let Some(child) = atom.child(&step) else { continue };
                let mut node = fields_of(child, value);
                node.member |= is_nothing(value) || matches!(atom, Atom::Map(_));
                out.children.push(step, node);
            }
        }
        (Atom::Keyed(..) | Atom::Set(_), Value::Array(items)) => {
            for (step, items) in by_step(atom, Some(items)) {
                let child = atom.child(&step);
                let children = match items[..] {
                    [item] => child.map(|child| fields_of(child, item).children).unwrap_or_default(),
                    _ => Set::EMPTY,
                };
                out.children.push(step, Node { member: true, children });
            }
        }
        _ => {}
    }
    out
}

/// Null or an object without members.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

fn by_step<'v>(atom: Atom<'_>, items: Option<&'v Vec<Value>>) -> BTreeMap<Step, Vec<&'v Value>> {
    let mut out: BTreeMap<Step, Vec<&Value>> = BTreeMap::new();
    for item in items.into_iter().flatten() {
        // What has no key is refused by validation.
        if let Ok(step) = atom.step_of(item) {
            out.entry(step).or_default().push(item);
        }
    }
    out
}

#[derive(Default)]
struct Diff {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Diff {
    fn push(&mut self, step: Step, child: Self) {
        let parts =
            [(&mut self.added, child.added), (&mut self.modified, child.modified), (&mut self.removed, child.removed)];
        let mut parts = parts.into_iter().filter(|(_, child)| !child.is_empty());
        let Some((mut own, mut child)) = parts.next() else { return };
        for (next, of_next) in parts {
            own.children.push(step.clone(), child);
            (own, child) = (next, of_next);
        }
        own.children.push(step, child);
    }

    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut out = Self::default();
        match (old, new) {
            (None, None) => {}
            (None, Some(_)) => out.added.member = true,
            (Some(_), None) => out.removed.member = true,
            (Some(old), Some(new)) => out.modified.member = !step::same(old, new),
        }
        out
    }
}

fn compare(atom: Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> Diff {
    if old == new {
        return Diff::default();
    }
    let mut out = match atom {
        Atom::Scalar(_) | Atom::Whole(_) => return Diff::leaf(old, new),
        Atom::Struct(of) => match (members(old), members(new)) {
            (Ok(a), Ok(b)) if !(lacks(of, a) && lacks(of, b)) => structs(of, a, b),
            _ => return Diff::leaf(old, new),
        },
        Atom::Map(_) => match (members(old), members(new)) {
            (Ok(a), Ok(b)) if a.is_some_and(|a| !a.is_empty()) || b.is_some_and(|b| !b.is_empty()) => maps(atom, a, b),
            _ => return Diff::leaf(old, new),
        },
        Atom::Keyed(..) | Atom::Set(_) => match (items(old), items(new)) {
            (Ok(a), Ok(b)) if a.is_some_and(|a| !a.is_empty()) || b.is_some_and(|b| !b.is_empty()) => lists(atom, a, b),
            _ => return Diff::leaf(old, new),
        },
    };
    out.added.member |= old.is_none();
    out.removed.member |= new.is_none();
    out
}

/// The members of an object; null has none, and anything else is no object.
fn members(value: Option<&Value>) -> Result<Option<&Map<String, Value>>, ()> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(()),
    }
}

fn items(value: Option<&Value>) -> Result<Option<&Vec<Value>>, ()> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(()),
    }
}

fn lacks(of: Type<'_>, members: Option<&Map<String, Value>>) -> bool {
    members.is_none_or(|members| members.is_empty() && of.fields().all(|field| field.zero().is_none()))
}

fn structs(of: Type<'_>, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) -> Diff {
    let mut out = Diff::default();
    for field in of.fields() {
        let old = old.and_then(|members| members.get(field.name()).or_else(|| field.zero()));
        let new = new.and_then(|members| members.get(field.name()).or_else(|| field.zero()));
        if old != new {
            out.push(Step::Field(field.name().to_owned()), compare(Atom::of_field(field), old, new));
        }
    }
    out
}

fn maps(atom: Atom<'_>, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) -> Diff {
    let mut out = Diff::default();
    let mut names: Vec<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (old, new) = (old.and_then(|members| members.get(name)), new.and_then(|members| members.get(name)));
        let step = Step::Field(name.clone());
        if old != new
            && let Some(child) = atom.child(&step)
        {
            out.push(step, compare(child, old, new));
        }
    }
    out
}

fn lists(atom: Atom<'_>, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>) -> Diff {
    let mut out = Diff::default();
    let mut pairs: BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (step, items) in by_step(atom, old) {
        pairs.insert(step, (items, Vec::new()));
    }
    for (step, items) in by_step(atom, new) {
        pairs.entry(step).or_default().1 = items;
    }
    for (step, (old, new)) in pairs {
        let Some(child) = atom.child(&step) else { continue };
        let one = |old: Option<&&Value>, new: Option<&&Value>| compare(child, old.copied(), new.copied());
        let diff = match (old.len(), new.len()) {
            (..=1, ..=1) => one(old.first(), new.first()),
            // Items that stand there twice are owned as one, without what is in them.
            (2.., 2..) => {
                let mut diff = Diff::default();
                diff.modified.member = old.len() != new.len() || old.iter().zip(&new).any(|(a, b)| !step::same(a, b));
                diff
            }
            (2.., ..=1) => {
                let mut diff = if new.is_empty() { Diff::default() } else { one(None, new.first()) };
                diff.removed.member = true;
                diff
            }
            (..=1, 2..) => {
                let mut diff = if old.is_empty() { Diff::default() } else { one(old.first(), None) };
                diff.added.member = true;
                diff
            }
        };
        out.push(step, diff);
    }
    out
}
