//! The metadata that the server itself writes: names, uids, timestamps, finalizers.
//!
//! Source: apiserver `pkg/registry/rest/{meta,create,update}.go`, `pkg/storage/names/generate.go`.

use api::field;
use api::status::Status;
use api::validation;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::hooks::Rng;

/// Fields that no client may write.
const SYSTEM: [&str; 5] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// The object's metadata, made when it is absent.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("it was just made an object")
}

/// A text field of the metadata, empty when absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Clears what clients may not set when they create something.
pub fn wipe(object: &mut Value) {
    let metadata = of(object);
    for field in SYSTEM {
        metadata.remove(field);
    }
}

/// Drops what is not kept: nulls that stand for absent, and fields of old releases.
pub fn tidy(object: &mut Value) {
    let metadata = of(object);
    metadata.retain(|field, value| !value.is_null() && field != "selfLink");
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// Makes the object's namespace that of the request.
///
/// # Errors
/// 400 when the object names another one.
pub fn put_in_namespace(object: &mut Value, namespace: &str) -> Result<(), Status> {
    let metadata = of(object);
    let own = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else if own.is_empty() {
        metadata.insert("namespace".to_owned(), namespace.into());
    } else if own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Carries over what an update cannot change.
pub fn carry_over(object: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let metadata = of(object);
    let mut keep = |field: &str, always: bool| {
        let absent = metadata.get(field).is_none_or(|own| own.is_null() || own.as_str() == Some(""));
        match old.get(field) {
            Some(value) if always || absent => drop(metadata.insert(field.to_owned(), value.clone())),
            None if always => drop(metadata.remove(field)),
            _ => {}
        }
    };
    keep("uid", false);
    keep("creationTimestamp", true);
    keep("deletionTimestamp", true);
    keep("deletionGracePeriodSeconds", true);
}

/// Removes repeated owner references, as upstream does with a warning.
pub fn dedup_owners(object: &mut Value) -> Option<String> {
    let owners = of(object).get_mut("ownerReferences")?.as_array_mut()?;
    let (mut seen, mut repeated): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    owners.retain(|owner| {
        let new = !seen.contains(owner);
        if new {
            seen.push(owner.clone());
        } else {
            repeated.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        }
        new
    });
    (!repeated.is_empty()).then(|| format!(
        ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        repeated.join(", ")
    ))
}

/// Seconds resolution, as metav1.Time is written.
pub fn rfc3339(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name that begins with `base`.
pub fn generate_name(base: &str, rng: &Rng) -> String {
    validation::generate_name(base, |below| random_below(rng, below as u128) as usize)
}

/// A number below `bound`, each as likely as the others.
pub fn random_below(rng: &Rng, bound: u128) -> u128 {
    // The last numbers of the range would favour the first results.
    let limit = u128::MAX - u128::MAX % bound.max(1);
    loop {
        let mut bytes = [0; 16];
        rng(&mut bytes);
        let number = u128::from_le_bytes(bytes);
        if number < limit {
            return number % bound.max(1);
        }
    }
}

/// A random UUID (version 4).
pub fn uuid(rng: &Rng) -> String {
    let mut b = [0; 16];
    rng(&mut b);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let n = u128::from_be_bytes(b);
    let (time, random) = (n >> 64, n as u64);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        time >> 32,
        time >> 16 & 0xffff,
        time & 0xffff,
        random >> 48,
        random << 16 >> 16
    )
}

/// The resource version that a client sent, 0 when it sent none.
///
/// # Errors
/// 400 when it is not a number.
pub fn resource_version(object: &Value) -> Result<u64, Status> {
    match &object["metadata"]["resourceVersion"] {
        Value::Null => Ok(0),
        Value::String(text) if text.is_empty() => Ok(0),
        Value::String(text) => text.parse().map_err(|_| invalid_revision(text)),
        other => Err(invalid_revision(&other.to_string())),
    }
}

fn invalid_revision(text: &str) -> Status {
    let at = field::Path::new("metadata").child("resourceVersion");
    Status::bad_request(field::Error::invalid(&at, text, "must be a number that this server gave out"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn counting() -> Rng {
        let next = std::sync::atomic::AtomicU8::new(0);
        Arc::new(move |out| out.fill_with(|| next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
    }

    #[test]
    fn generated_names_fit_labels() {
        assert_eq!(generate_name("web-", &counting()).len(), 9);
        assert_eq!(generate_name(&"a".repeat(80), &counting()).len(), 63);
    }

    #[test]
    fn uuids_are_version_4() {
        assert_eq!(uuid(&counting()), "00010203-0405-4607-8809-0a0b0c0d0e0f");
    }

    #[test]
    fn updates_keep_what_the_server_wrote() {
        let old = json!({"metadata": {"uid": "u", "creationTimestamp": "t", "deletionTimestamp": "d"}});
        let mut new = json!({"metadata": {"name": "a", "creationTimestamp": null, "deletionGracePeriodSeconds": 3}});
        carry_over(&mut new, &old);
        assert_eq!(
            new["metadata"],
            json!({"name": "a", "uid": "u", "creationTimestamp": "t", "deletionTimestamp": "d"})
        );
    }
}
