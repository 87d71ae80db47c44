//! Strategic merge patches: RFC 7386, where lists are merged by the key that the schema names, and with directives.
//!
//! Source: apimachinery `pkg/util/strategicpatch/patch.go`. Fields that the schema does not know are merged as RFC 7386
//! says; upstream refuses them here already, the server does it when it decodes the result. Members are handled in the
//! order of their names, so `$deleteFromPrimitiveList/x` comes before `x`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Error;
use crate::schema::{PatchStrategy, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList";
const ORDER_PREFIX: &str = "$setElementOrder";

type Object = Map<String, Value>;

/// Returns `original` with `patch` applied.
pub(super) fn apply(original: Object, patch: Object, of: Type<'_>) -> Result<Object, Error> {
    merge(original, patch, Context::Struct(of))
}

/// What is known of the members of an object.
#[derive(Clone, Copy)]
enum Context<'a> {
    Struct(Type<'a>),
    /// Every member has this shape.
    Map(Shape<'a>),
    Unknown,
}

impl<'a> Context<'a> {
    fn of(shape: Option<Shape<'a>>) -> Self {
        match shape {
            Some(Shape::Object(of)) => Self::Struct(of),
            Some(Shape::Map(values)) => Self::Map(values.shape()),
            Some(Shape::List(_) | Shape::Scalar(_)) | None => Self::Unknown,
        }
    }

    fn member(self, name: &str) -> Member<'a> {
        let none = Member { shape: None, strategy: PatchStrategy::default(), merge_key: None };
        match self {
            Self::Struct(of) => of.field(name).map_or(none, |field| Member {
                shape: Some(field.shape()),
                strategy: field.patch_strategy(),
                merge_key: field.merge_key(),
            }),
            Self::Map(shape) => Member { shape: Some(shape), ..none },
            Self::Unknown => none,
        }
    }
}

/// What is known of one member of an object.
#[derive(Clone, Copy)]
struct Member<'a> {
    shape: Option<Shape<'a>>,
    strategy: PatchStrategy,
    merge_key: Option<&'a str>,
}

impl<'a> Member<'a> {
    /// What is known of the items, when the member is a list.
    fn items(self) -> Context<'a> {
        match self.shape {
            Some(Shape::List(items)) => Context::of(Some(items.shape())),
            _ => Context::Unknown,
        }
    }
}

fn merge(mut original: Object, mut patch: Object, context: Context<'_>) -> Result<Object, Error> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => {
            patch.remove(DIRECTIVE);
            return Ok(patch);
        }
        Some(Value::String(directive)) if directive == "delete" => return Ok(Object::new()),
        Some(directive) => return Err(bad_directive(directive, &patch)),
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, context)?;
    for (name, change) in patch {
        if let Some(name) = name.strip_prefix(DELETE_PREFIX) {
            let name = name.strip_prefix('/').ok_or_else(|| bad_format("primitive list"))?;
            delete_from(&mut original, name, change)?;
        } else {
            merge_member(&mut original, name, change, context)?;
        }
    }
    Ok(original)
}

fn merge_member(original: &mut Object, name: String, change: Value, context: Context<'_>) -> Result<(), Error> {
    let member = context.member(&name);
    let merged = match (original.remove(&name), change) {
        (_, Value::Null) => None,
        (Some(Value::Object(_)), Value::Object(change)) if member.strategy.replace => Some(Value::Object(change)),
        (Some(Value::Object(old)), Value::Object(change)) => {
            Some(Value::Object(merge(old, change, Context::of(member.shape))?))
        }
        (Some(Value::Array(old)), Value::Array(change)) if member.strategy.merge => {
            Some(Value::Array(merge_list(old, change, member)?))
        }
        (Some(Value::Array(_)), change @ Value::Array(_)) => Some(change),
        (_, mut change) => {
            discard_nulls(&mut change);
            without_directives(change)
        }
    };
    if let Some(merged) = merged {
        original.insert(name, merged);
    }
    Ok(())
}

/// `$deleteFromPrimitiveList/NAME`: items to remove, whatever the list's strategy.
fn delete_from(original: &mut Object, name: &str, items: Value) -> Result<(), Error> {
    let items = match items {
        Value::Null => {
            original.remove(name);
            return Ok(());
        }
        Value::Array(items) => items,
        _ => return Err(bad_format("primitive list")),
    };
    if let Some(Value::Array(old)) = original.get_mut(name) {
        check_items(&[&*old, &items])?;
        old.retain(|item| !items.contains(item));
    }
    Ok(())
}

/// `$retainKeys`: every other member of the original goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = directive else {
        return Err(bad_format("retainKeys"));
    };
    let keys: BTreeSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let parallel = |name: &str| name.starts_with(DELETE_PREFIX) || name.starts_with(ORDER_PREFIX);
    if patch.iter().any(|(name, value)| !value.is_null() && !parallel(name) && !keys.contains(name.as_str())) {
        return Err(bad_format("retainKeys"));
    }
    original.retain(|name, _| keys.contains(name.as_str()));
    Ok(())
}

/// `$setElementOrder/NAME`: merges the list and puts it in order. Takes both out of the patch.
fn set_orders(original: &mut Object, patch: &mut Object, context: Context<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|name| name.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let name =
            directive[ORDER_PREFIX.len()..].strip_prefix('/').ok_or_else(|| bad_format("setElementOrder list"))?;
        let order = list(patch.remove(&directive).unwrap_or_default())?;
        let member = context.member(name);
        let change = patch.get(name).cloned().map(list).transpose()?;
        check_order(change.as_deref().unwrap_or_default(), &order, member.merge_key)?;
        let old = original.get(name).filter(|old| !old.is_null()).cloned().map(list).transpose()?;
        let server_order =
            server_order(old.as_deref().unwrap_or_default(), change.as_deref().unwrap_or_default(), member);
        let (merged, items) = match (old, change) {
            (None, None) => continue,
            (Some(old), None) => (old.clone(), old),
            (None, Some(change)) => (items_without_directives(change.clone()), change),
            (Some(old), Some(change)) => {
                let all = [old.as_slice(), change.as_slice()].concat();
                let merged = if member.strategy.merge { merge_list(old, change, member)? } else { change };
                (merged, all)
            }
        };
        let of_objects = check_items(&[&items])?;
        let (ordered, server_only) = partition(merged, &order, member.merge_key)?;
        let key = if of_objects { member.merge_key } else { None };
        original.insert(name.to_owned(), in_order(ordered, server_only, &order, &server_order, key)?.into());
        patch.remove(name);
    }
    Ok(())
}

/// The order that server-only items are kept in: the old list's, where added items take the places of deleted ones.
fn server_order(old: &[Value], change: &[Value], member: Member<'_>) -> Vec<Value> {
    let Some(key) = member.merge_key.filter(|_| member.strategy.merge) else {
        return old.to_vec();
    };
    let names = |list: &[Value], item: &Value| list.iter().any(|other| other.get(key) == item.get(key));
    let directive = |item: &&Value, name: &str| item.get(DIRECTIVE).is_some_and(|directive| directive == name);
    if change.iter().any(|item| directive(&item, "replace")) {
        return old.to_vec();
    }
    let deleted: Vec<Value> = change.iter().filter(|item| directive(item, "delete")).cloned().collect();
    let kept = old.iter().filter(|item| !names(&deleted, item));
    let added = change.iter().filter(|item| item.get(DIRECTIVE).is_none() && !names(old, item));
    kept.chain(added).take(old.len()).cloned().collect()
}

fn merge_list(old: Vec<Value>, change: Vec<Value>, member: Member<'_>) -> Result<Vec<Value>, Error> {
    if old.is_empty() && change.is_empty() {
        return Ok(old);
    }
    if !check_items(&[&old, &change])? {
        let mut merged: Vec<Value> = Vec::with_capacity(old.len() + change.len());
        for item in old.iter().chain(&change) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (patched, server_only) = partition(merged, &change, None)?;
        return in_order(patched, server_only, &change, &old, None);
    }
    let Some(key) = member.merge_key else {
        return Err(Error::Unprocessable("cannot merge lists without merge key".to_owned()));
    };
    let (mut merged, change) = directives_of_items(old, change, key)?;
    let server_order = merged.clone();
    for item in change.clone() {
        let Value::Object(item) = item else { continue };
        let value = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
        match merged.iter().position(|old| old.get(key) == Some(value)) {
            Some(at) => {
                if let Value::Object(old) = merged[at].take() {
                    merged[at] = Value::Object(merge(old, item, member.items())?);
                }
            }
            None => {
                let mut item = Value::Object(item);
                discard_nulls(&mut item);
                merged.extend(without_directives(item));
            }
        }
    }
    let (patched, server_only) = partition(merged, &change, Some(key))?;
    in_order(patched, server_only, &change, &server_order, Some(key))
}

/// Carries out `$patch: delete` and `$patch: replace` among the items; returns what is left of both lists.
fn directives_of_items(mut old: Vec<Value>, change: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let (mut rest, mut replace) = (Vec::new(), false);
    for item in change {
        let Some(directive) = item.get(DIRECTIVE) else {
            rest.push(item);
            continue;
        };
        let members = item.as_object().cloned().unwrap_or_default();
        match directive.as_str() {
            Some("delete") => {
                let value = members.get(key).ok_or_else(|| no_merge_key(&members, key))?;
                old.retain(|item| item.get(key) != Some(value));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Error::Unprocessable("merging lists cannot yet be specified in the patch".to_owned()));
            }
            _ => return Err(bad_directive(directive, &members)),
        }
    }
    Ok(if replace { (rest, Vec::new()) } else { (old, rest) })
}

/// The items of the patch must stand in the order that it asks for, and all be named there.
fn check_order(change: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Error> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut places = order.iter();
    for item in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let wanted = identity(item, key)?;
        loop {
            let Some(place) = places.next() else {
                return Err(Error::Unprocessable(format!(
                    "The order in patch list:\n{}\n doesn't match {ORDER_PREFIX} list:\n{}\n",
                    Go(&change.to_vec().into()),
                    Go(&order.to_vec().into())
                )));
            };
            if identity(place, key)? == wanted {
                break;
            }
        }
    }
    Ok(())
}

/// Splits items into those that `by` names and the others.
fn partition(items: Vec<Value>, by: &[Value], key: Option<&str>) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let wanted = identity(&item, key)?;
        let found = by.iter().any(|other| identity(other, key).is_ok_and(|other| other == wanted));
        if found { named.push(item) } else { others.push(item) }
    }
    Ok((named, others))
}

/// Orders the items that the patch names, and the server's own, and interleaves them as the server had them.
fn in_order(
    patched: Vec<Value>,
    server_only: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, Error> {
    let place = |item: &Value, order: &[Value]| {
        let wanted = identity(item, key).ok()?;
        order.iter().position(|other| identity(other, key).is_ok_and(|other| other == wanted))
    };
    let sorted = |mut items: Vec<Value>, order: &[Value]| {
        items.sort_by_key(|item| place(item, order));
        items
    };
    let mut patched = sorted(patched, order).into_iter().peekable();
    let mut server_only = sorted(server_only, server_order).into_iter().peekable();
    let mut out = Vec::new();
    loop {
        let take_server = match (server_only.peek(), patched.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(server), Some(patch)) => match (place(server, server_order), place(patch, server_order)) {
                (Some(server), Some(patch)) => server < patch,
                _ => false,
            },
        };
        out.extend(if take_server { server_only.next() } else { patched.next() });
    }
}

/// What tells an item from the others: its merge key's value, or itself.
fn identity<'v>(item: &'v Value, key: Option<&str>) -> Result<&'v Value, Error> {
    let Some(key) = key else {
        return Ok(item);
    };
    let members = item.as_object().ok_or_else(|| wrong_type("map[string]interface {}", item))?;
    members.get(key).ok_or_else(|| no_merge_key(members, key))
}

/// Checks that all items have one type, and tells whether they are objects.
fn check_items(lists: &[&[Value]]) -> Result<bool, Error> {
    let mut first: Option<&Value> = None;
    for item in lists.iter().copied().flatten() {
        let first = *first.get_or_insert(item);
        if item.is_array() {
            return Err(Error::Unprocessable("lists of lists are not supported".to_owned()));
        }
        if std::mem::discriminant(first) != std::mem::discriminant(item) {
            let all: Vec<Value> = lists.iter().map(|list| list.to_vec().into()).collect();
            let shown = Go(&all.into()).to_string();
            return Err(Error::Unprocessable(format!("list element types are not identical: {shown}")));
        }
    }
    Ok(first.is_some_and(Value::is_object))
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a patch's value adds where nothing was; `None` when it is itself a directive.
///
/// Upstream leaves the parallel lists in; they would be unknown fields.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(members) => {
            if members.contains_key(DIRECTIVE) {
                return None;
            }
            let directive =
                |name: &str| name == RETAIN_KEYS || name.starts_with(DELETE_PREFIX) || name.starts_with(ORDER_PREFIX);
            let members = members.into_iter().filter(|(name, _)| !directive(name));
            let members = members.filter_map(|(name, member)| Some((name, without_directives(member)?)));
            Some(Value::Object(members.collect()))
        }
        Value::Array(items) => Some(items_without_directives(items).into()),
        other => Some(other),
    }
}

fn items_without_directives(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

fn list(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(wrong_type("[]interface {}", &other)),
    }
}

fn wrong_type(expected: &str, actual: &Value) -> Error {
    let actual = match actual {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    Error::Unprocessable(format!("expected a {expected}, but received a {actual}"))
}

fn no_merge_key(members: &Object, key: &str) -> Error {
    let shown = Go(&members.clone().into()).to_string();
    Error::Unprocessable(format!("map: {shown} does not contain declared merge key: {key}"))
}

fn bad_directive(directive: &Value, members: &Object) -> Error {
    let shown = Go(&members.clone().into()).to_string();
    Error::Unprocessable(format!("unknown patch type: {} in map: {shown}", Go(directive)))
}

fn bad_format(of: &str) -> Error {
    Error::BadRequest(format!("invalid patch format of {of}"))
}

/// Writes a value as Go's `%v` does.
struct Go<'a>(&'a Value);

impl std::fmt::Display for Go<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(value) => write!(f, "{value}"),
            Value::String(value) => f.write_str(value),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| Go(item).to_string()).collect();
                write!(f, "[{}]", items.join(" "))
            }
            Value::Object(members) => {
                let members: Vec<String> =
                    members.iter().map(|(name, member)| format!("{name}:{}", Go(member))).collect();
                write!(f, "map[{}]", members.join(" "))
            }
        }
    }
}
