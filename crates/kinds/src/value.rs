//! Reading and filling untyped objects, where a missing field, `null` and a wrong type all read as empty.

use serde_json::{Map, Value, map::Entry};

/// The string, or the empty one.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The list's items, or none.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The list's items to change in place, or none.
pub fn items_mut(value: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    value.and_then(Value::as_array_mut).into_iter().flatten()
}

/// The whole number, or 0.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// True only for `true`.
pub fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_default()
}

/// Whether there is nothing in it that a typed decoder would keep: absent, `null`, `""`, `[]`, `{}`.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) => false,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// Sets a field that is absent or `null`.
pub fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// Sets a field that is absent, `null` or the empty string, as upstream does for fields that are not pointers.
pub fn default_text(object: &mut Value, field: &str, value: &str) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(|old| old.is_null() || old.as_str() == Some(""))
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// Sets a field.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(field.to_owned(), value.into());
    }
}

pub fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut()?.remove(field)
}

/// Removes fields that hold what their absence means: `false`, 0, or nothing.
///
/// Upstream leaves them out when it writes an object (`omitempty` of fields that are not pointers), so that two
/// manifests which differ only in them are the same.
pub fn drop_zero(object: &mut Value, fields: &[&str]) {
    for field in fields {
        let value = &object[*field];
        if is_empty(value) || value == false || *value == 0 {
            remove(object, field);
        }
    }
}

/// Makes `field` what it is in `from`, absent included.
pub fn copy(object: &mut Value, field: &str, from: &Value) {
    match from.get(field) {
        Some(value) => set(object, field, value.clone()),
        None => drop(remove(object, field)),
    }
}

/// The object under `field`, made when it is absent or `null`. `None` when something else is there.
pub fn object<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let slot = match parent.as_object_mut()?.entry(field) {
        Entry::Occupied(slot) => slot.into_mut(),
        Entry::Vacant(slot) => slot.insert(Value::Null),
    };
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}
