//! Secret: configuration that is kept from most eyes.
//!
//! Source: kubernetes `pkg/registry/core/secret/strategy.go`.

use api::field::Error;
use api::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::config_map::{MAX_SIZE, unchanged};
use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::strategy::same;
use crate::table;
use crate::value::{copy, default_text, is_empty, object, remove, set, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).preparing(prepare).validating(validate).warning(warnings),
        columns: vec![
            Column::name(),
            Column::text("Type", "What its keys mean."),
            Column::text("Data", "How many keys it has."),
            Column::age(),
        ],
        row: Box::new(row),
        fields: Box::new(|secret| vec![("type", text(&secret["type"]).to_owned())]),
        ..Kind::namespaced("", "v1", "Secret", "secrets")
    }
}

fn fill(secret: &mut Value) {
    default_text(secret, "type", "Opaque");
    // `stringData` is for writing only: it becomes data at once.
    if let Some(Value::Object(plain)) = remove(secret, "stringData")
        && !plain.is_empty()
        && let Some(data) = object(secret, "data")
    {
        for (key, value) in plain {
            set(data, &key, STANDARD.encode(text(&value)));
        }
    }
}

fn prepare(secret: &mut Value, old: Option<&Value>) {
    if let Some(old) = old
        && is_empty(&secret["type"])
    {
        copy(secret, "type", old);
    }
}

fn validate(secret: &Value, old: Option<&Value>) -> Vec<Error> {
    let root = Place::root(secret);
    let (kind, data) = (root.child("type"), root.child("data"));
    let mut errors = Vec::new();
    if let Some(old) = old {
        if !same(kind.value, &old["type"]) {
            errors.push(kind.invalid("field is immutable"));
        }
        unchanged(&root, old, &["data"], &mut errors);
    }
    let mut size = 0;
    for (key, value) in data.entries() {
        errors
            .extend(names::is_config_map_key(key).into_iter().map(|message| Error::invalid(&value.path, key, message)));
        size += value.text().len() / 4 * 3;
    }
    if size > MAX_SIZE {
        errors.push(Error::too_long(&data.path, MAX_SIZE));
    }
    keys_of_type(&root, &mut errors);
    errors
}

/// Types promise keys.
fn keys_of_type(secret: &Place<'_>, errors: &mut Vec<Error>) {
    let data = secret.child("data");
    let missing = |key: &str| Error::required(&data.path.key(key), "");
    let has = |key: &str| data.child(key).is_set();
    match secret.child("type").text() {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let annotations = secret.child("metadata").child("annotations");
            if annotations.child(key).is_empty() {
                errors.push(Error::required(&annotations.path.key(key), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker_config(&data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker_config(&data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.extend(["username", "password"].map(missing));
        }
        "kubernetes.io/ssh-auth" if data.child("ssh-privatekey").is_empty() => errors.push(missing("ssh-privatekey")),
        "kubernetes.io/tls" => errors.extend(["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)).map(missing)),
        _ => {}
    }
}

fn docker_config(data: &Place<'_>, key: &str, errors: &mut Vec<Error>) {
    let (value, path) = (data.child(key), data.path.key(key));
    if !value.is_set() {
        return errors.push(Error::required(&path, ""));
    }
    let bytes = STANDARD.decode(value.text()).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        let why = api::json::go_error(&bytes, &error);
        errors.push(Error::invalid(&path, "<secret contents redacted>", why));
    }
}

/// Whether a TLS pair can be one at all.
///
/// Source: kubernetes `pkg/registry/core/secret/strategy.go`, `warningsForSecret`; the texts are those of Go's `crypto/tls`.
fn warnings(secret: &Value, _old: Option<&Value>) -> Vec<String> {
    if text(&secret["type"]) != "kubernetes.io/tls" {
        return Vec::new();
    }
    let has_pem = |key: &str| {
        let bytes = STANDARD.decode(text(&secret["data"][key])).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains("-----BEGIN ")
    };
    let missing = [("tls.crt", "certificate"), ("tls.key", "key")].into_iter().find(|(key, _)| !has_pem(key));
    missing.map(|(_, what)| format!("tls: failed to find any PEM data in {what} input")).into_iter().collect()
}

fn row(secret: &Value, now: Timestamp) -> Vec<Value> {
    let keys = secret["data"].as_object().map_or(0, serde_json::Map::len);
    vec![json!(table::name(secret)), json!(text(&secret["type"])), json!(keys), table::age(secret, now)]
}
