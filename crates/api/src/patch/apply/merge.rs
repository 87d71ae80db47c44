//! Merges a configuration into an object, and takes fields out of one.
//!
//! Source: structured-merge-diff `typed/{merge,remove}.go`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::atom::Atom;
use super::set::Set;
use super::step::Step;
use crate::schema::Type;

/// Returns the object with every field that the configuration has. Lists that it touches get its order.
///
/// # Errors
/// When an item of the object's lists cannot be told from the others.
pub(super) fn merge(of: Type<'_>, object: &Value, config: &Value) -> Result<Value, String> {
    let merged = both(Atom::Struct(of), Some(object), Some(config))?;
    Ok(merged.unwrap_or(Value::Null))
}

fn both(atom: Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> Result<Option<Value>, String> {
    let leaf = || Ok(new.or(old).cloned());
    let some = |value: Option<&Value>| match value {
        Some(Value::Object(members)) => !members.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    };
    if new.is_none() || !some(old) && !some(new) {
        return leaf();
    }
    match atom {
        Atom::Scalar(_) | Atom::Whole(_) => leaf(),
        Atom::Struct(_) | Atom::Map(_) => {
            let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let mut out = Map::new();
            for name in old.into_iter().chain(new).flat_map(Map::keys).collect::<BTreeSet<_>>() {
                let (old, new) = (old.and_then(|members| members.get(name)), new.and_then(|members| members.get(name)));
                let merged = match atom.child(&Step::Field(name.clone())) {
                    Some(child) => both(child, old, new)?,
                    // Only the object can have it, of another release.
                    None => old.cloned(),
                };
                if let Some(merged) = merged {
                    out.insert(name.clone(), merged);
                }
            }
            Ok((!out.is_empty()).then_some(Value::Object(out)))
        }
        Atom::Keyed(..) | Atom::Set(_) => lists(atom, old.and_then(Value::as_array), new.and_then(Value::as_array)),
    }
}

/// The items of both lists. Those of the configuration keep its order, and the others stay where they are among those
/// that both have.
fn lists(atom: Atom<'_>, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>) -> Result<Option<Value>, String> {
    let old: Vec<(Step, &Value)> = indexed(atom, old)?;
    let new: Vec<(Step, &Value)> = indexed(atom, new)?;
    let mut in_old: BTreeMap<&Step, &Value> = BTreeMap::new();
    for (step, item) in &old {
        // What stands there twice is not merged with.
        in_old.entry(step).and_modify(|item| *item = &Value::Null).or_insert(item);
    }
    let in_new: BTreeSet<&Step> = new.iter().map(|(step, _)| step).collect();
    let mut shared = new.iter().map(|(step, _)| step).filter(|step| in_old.contains_key(step));
    let mut next_shared = shared.next();
    let mut merged: BTreeSet<&Step> = BTreeSet::new();
    let mut out: Vec<Value> = Vec::with_capacity(old.len().max(new.len()));
    let item = |step: &Step, old: Option<&Value>, new: Option<&Value>| match atom.child(step) {
        Some(child) => both(child, old, new),
        None => Ok(None),
    };
    let (mut at_old, mut at_new) = (0, 0);
    while at_old < old.len() || at_new < new.len() {
        if let (Some((left, _)), Some((right, value))) = (old.get(at_old), new.get(at_new)) {
            if left == right {
                merged.insert(left);
                out.extend(item(left, in_old.get(left).copied(), Some(value))?);
                (at_old, at_new, next_shared) = (at_old + 1, at_new + 1, shared.next());
                continue;
            }
            if in_new.contains(left) && next_shared.is_some_and(|next| next != left) {
                // Both have it, but its turn comes later.
                at_old += 1;
                continue;
            }
        }
        if let Some((left, value)) = old.get(at_old) {
            if !in_new.contains(left) {
                out.extend(item(left, Some(value), None)?);
                at_old += 1;
                continue;
            } else if merged.contains(left) {
                at_old += 1;
            }
        }
        if let Some((right, value)) = new.get(at_new) {
            merged.insert(right);
            out.extend(item(right, in_old.get(right).copied(), Some(value))?);
            at_new += 1;
            if next_shared == Some(right) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn indexed<'v>(atom: Atom<'_>, items: Option<&'v Vec<Value>>) -> Result<Vec<(Step, &'v Value)>, String> {
    let items = items.into_iter().flatten().enumerate();
    let step = |(at, item)| match atom.step_of(item) {
        Ok(step) => Ok((step, item)),
        Err(why) => Err(format!("element {at}: {why}")),
    };
    items.map(step).collect()
}

/// Returns the object without the fields and items of a set; what is left empty is null.
pub(super) fn remove(of: Type<'_>, object: &Value, fields: &Set) -> Value {
    without(Atom::Struct(of), object, fields)
}

fn without(atom: Atom<'_>, value: &Value, fields: &Set) -> Value {
    match (atom, value) {
        (Atom::Scalar(_), value) => value.clone(),
        (Atom::Struct(_) | Atom::Map(_), Value::Object(members)) => {
            let mut out = Map::new();
            for (name, value) in members {
                let step = Step::Field(name.clone());
                let kept = match (fields.get(&step), atom.child(&step)) {
                    (Some(node), _) if node.member => continue,
                    (Some(node), Some(child)) => without(child, value, &node.children),
                    _ => value.clone(),
                };
                out.insert(name.clone(), kept);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        (Atom::Keyed(..) | Atom::Set(_), Value::Array(items)) => {
            let mut out = Vec::new();
            for item in items {
                let step = atom.step_of(item).ok();
                let node = step.as_ref().and_then(|step| fields.get(step));
                let child = step.as_ref().and_then(|step| atom.child(step));
                out.push(match (node, child) {
                    (Some(node), _) if node.member => continue,
                    (Some(node), Some(child)) => without(child, item, &node.children),
                    _ => item.clone(),
                });
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        // What is owned as a whole goes as a whole.
        _ => Value::Null,
    }
}
