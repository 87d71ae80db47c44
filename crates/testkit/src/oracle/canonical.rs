//! Answers without what no two servers say alike: revisions, uids, times, allocated addresses and ports, generated names.
//!
//! What is replaced leaves a mark, so that a field that only one side has is still a difference.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, Pick, Request};

const MARK: &str = "*";
/// What a base object asks for: it stays.
const ASKED_ADDRESS: &str = "10.96.200.1";
/// In one of these an answer says how old something is.
const AGES: [&str; 4] = ["Age", "Last Seen", "First Seen", "Created At"];

/// An answer that can be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Canonical {
    pub code: u16,
    /// Empty for JSON.
    pub content_type: String,
    pub warnings: Vec<String>,
    /// Without managed fields.
    pub body: Value,
    /// `managedFields` by the JSON pointer of their object.
    pub managed: Value,
}

/// The comparable form of the answer to `request`.
pub fn canonical(request: &Request, answer: &Answer) -> Canonical {
    let mut body = match &request.pick {
        Some(pick) if answer.code == 200 => picked(pick, &answer.body),
        _ => answer.body.clone(),
    };
    let generated =
        request.body.as_ref().and_then(|body| body["metadata"]["generateName"].as_str()).unwrap_or_default();
    // A long one is cut to make room for what is added.
    let generated: String = generated.chars().take(58).collect();
    if !generated.is_empty() {
        replace_texts(&mut body, &|text| mark_after(text, &generated, |c| c.is_ascii_alphanumeric()));
    }
    let mut managed = Map::new();
    clean(&mut body, String::new(), &mut managed);
    if body["kind"] == "Table" {
        clean_table(&mut body);
    }
    if body["kind"] == "Status" {
        clean_status(&mut body);
    }
    if body["kind"] == "SelfSubjectRulesReview" {
        sort(&mut body["status"]);
    }
    clean_tokens(&mut body);
    let mut warnings: Vec<String> = answer.warnings.iter().map(|warning| text(warning)).collect();
    warnings.sort();
    let content_type = answer.content_type.clone();
    Canonical { code: answer.code, content_type, warnings, body, managed: Value::Object(managed) }
}

impl Canonical {
    /// As one value, the form in which answers are kept and compared.
    pub fn value(&self) -> Value {
        let mut value = json!({"code": self.code, "body": self.body});
        if !self.content_type.is_empty() {
            value["type"] = json!(self.content_type);
        }
        if !self.warnings.is_empty() {
            value["warnings"] = json!(self.warnings);
        }
        if self.managed.as_object().is_some_and(|managed| !managed.is_empty()) {
            value["managed"] = self.managed.clone();
        }
        value
    }
}

fn clean(value: &mut Value, pointer: String, managed: &mut Map<String, Value>) {
    match value {
        Value::String(string) => *string = text(string),
        Value::Array(items) => {
            items.iter_mut().enumerate().for_each(|(n, item)| clean(item, format!("{pointer}/{n}"), managed));
        }
        Value::Object(members) => {
            if let Some(Value::Object(metadata)) = members.get_mut("metadata") {
                clean_metadata(metadata, &pointer, managed);
            }
            for (name, member) in members.iter_mut() {
                match name.as_str() {
                    "clusterIP" | "clusterIPs" => mark_addresses(member),
                    "nodePort" | "healthCheckNodePort"
                        if member.as_u64().is_some_and(|port| (30_000..33_000).contains(&port)) =>
                    {
                        *member = json!(MARK);
                    }
                    _ => {}
                }
                clean(member, format!("{pointer}/{name}"), managed);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn clean_metadata(metadata: &mut Map<String, Value>, pointer: &str, managed: &mut Map<String, Value>) {
    for name in ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "continue"] {
        if let Some(value) = metadata.get_mut(name).filter(|value| value.as_str().is_some_and(|text| !text.is_empty()))
        {
            *value = json!(MARK);
        }
    }
    if metadata.get("generateName").is_some_and(Value::is_string) {
        metadata.insert("name".to_owned(), json!(MARK));
    }
    if let Some(mut fields) = metadata.remove("managedFields") {
        for entry in fields.as_array_mut().into_iter().flatten() {
            if entry["time"].is_string() {
                entry["time"] = json!(MARK);
            }
        }
        managed.insert(pointer.to_owned(), fields);
    }
}

fn mark_addresses(value: &mut Value) {
    match value {
        Value::String(address) if address.starts_with("10.") && address != ASKED_ADDRESS => *value = json!(MARK),
        Value::Array(items) => items.iter_mut().for_each(mark_addresses),
        _ => {}
    }
}

/// Texts without uids, generated names and the numbers of revisions, and with printed values in one form.
fn text(string: &str) -> String {
    let mut out = without_uids(string);
    out = mark_after(&out, "kube-api-access-", |c| c.is_ascii_alphanumeric());
    out = mark_after(&out, "object meta: ", |c| c.is_ascii_digit());
    out = mark_after(&out, "ResourceVersion in record (", |c| c.is_ascii_digit());
    out = mark_after(&out, "X509SHA256=", |c| c.is_ascii_hexdigit());
    out = out.replace('\u{a0}', " ");
    if let Some((before, _)) = out.strip_suffix(" ago)").and_then(|rest| rest.rsplit_once('(')) {
        // How long ago depends on when it is asked.
        out = format!("{before}({MARK} ago)");
    }
    if out.starts_with("the object provided is unrecognized")
        && let Some((before, _)) = out.split_once(" ({\"")
    {
        // Upstream repeats the beginning of the body.
        out = before.to_owned();
    }
    if let Some((before, _)) = out.split_once("\n@@ ") {
        // What a pod's specification was and is, as Go prints it.
        out = before.to_owned();
    }
    ["Invalid value: ", "Unsupported value: ", "Duplicate value: "]
        .iter()
        .fold(out, |text, prefix| printed(&text, prefix))
}

/// Values behind `prefix` in one form: upstream prints Go's structs, in the order and under the names of their fields, and
/// zero values where another has none.
fn printed(string: &str, prefix: &str) -> String {
    let mut parts = string.split(prefix);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(prefix);
        let mut stream = serde_json::Deserializer::from_str(part).into_iter::<Value>();
        let Some(Ok(mut value)) = stream.next() else {
            out.push_str(part);
            continue;
        };
        let rest = &part[stream.byte_offset()..];
        let is_whole = value.as_str().is_some_and(|text| text.starts_with("{\"") || text.starts_with("map["));
        if is_whole {
            // A patch that failed: one side prints it, and the other the object.
            value = json!("…");
        }
        squeeze(&mut value);
        out.push_str(&value.to_string());
        out.push_str(rest);
    }
    out
}

/// Leaves out zero values, and writes names in lower case.
fn squeeze(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let all = std::mem::take(members);
            for (name, mut member) in all {
                squeeze(&mut member);
                if !member.is_null() && name != "managedFields" {
                    members.insert(name.to_lowercase(), member);
                }
            }
            if members.is_empty() {
                *value = Value::Null;
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(squeeze);
            if items.is_empty() {
                *value = Value::Null;
            }
        }
        Value::String(text) if text.is_empty() => *value = Value::Null,
        Value::Bool(false) => *value = Value::Null,
        Value::Number(number) if number.as_i64() == Some(0) => *value = Value::Null,
        Value::Null | Value::Bool(true) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The uids that requests ask for stay.
fn without_uids(string: &str) -> String {
    const ASKED: &str = "7c0b6a0e-0000-4000-8000-";
    let is_uid = |text: &str| {
        text.len() == 36
            && text.bytes().enumerate().all(|(n, b)| match n {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            })
    };
    let mut out = String::with_capacity(string.len());
    let mut rest = string;
    while let Some(first) = rest.chars().next() {
        if rest.get(..36).is_some_and(|text| is_uid(text) && !text.starts_with(ASKED)) {
            out.push_str("UID");
            rest = &rest[36..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn mark_after(string: &str, prefix: &str, is_part: impl Fn(char) -> bool) -> String {
    let mut parts = string.split(prefix);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(prefix);
        let rest = part.trim_start_matches(&is_part);
        if rest.len() < part.len() {
            out.push_str(MARK);
        }
        out.push_str(rest);
    }
    out
}

fn clean_table(table: &mut Value) {
    let ages: Vec<usize> = table["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, column)| AGES.iter().any(|age| column["name"] == *age))
        .map(|(n, _)| n)
        .collect();
    for row in table["rows"].as_array_mut().into_iter().flatten() {
        for at in &ages {
            if let Some(cell) = row["cells"].get_mut(*at).filter(|cell| *cell != "<unknown>") {
                *cell = json!(MARK);
            }
        }
        // Allocated addresses and ports of Services.
        for cell in row["cells"].as_array_mut().into_iter().flatten() {
            let Some(text) = cell.as_str() else { continue };
            if text.starts_with("10.") && text.parse::<std::net::IpAddr>().is_ok() && text != ASKED_ADDRESS {
                *cell = json!(MARK);
            } else if text.ends_with("/TCP") || text.ends_with("/UDP") {
                *cell = json!(mark_after(text, ":", |c| c.is_ascii_digit()));
            }
        }
    }
}

/// What tokens, and the keys by which they are checked, are made of.
fn clean_tokens(body: &mut Value) {
    let mark = |value: &mut Value, names: &[&str]| {
        for name in names {
            if let Some(text @ Value::String(_)) = value.get_mut(*name) {
                *text = json!(MARK);
            }
        }
    };
    if body["kind"] == "TokenRequest" {
        mark(&mut body["status"], &["token", "expirationTimestamp"]);
    }
    for key in body.get_mut("keys").and_then(Value::as_array_mut).into_iter().flatten() {
        mark(key, &["kid", "x", "y"]);
    }
    if let Some(Value::String(uri)) = body.get_mut("jwks_uri")
        && let Some((_, path)) = uri.trim_start_matches("https://").split_once('/')
    {
        *uri = format!("https://{MARK}/{path}");
    }
}

fn replace_texts(value: &mut Value, change: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_texts(item, change)),
        Value::Object(members) => members.values_mut().for_each(|member| replace_texts(member, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Lists whose order says nothing.
fn sort(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            items.sort_by_key(Value::to_string);
        }
        Value::Object(members) => members.values_mut().for_each(sort),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Causes in the order of their text: upstream walks over maps. A message that repeats several is cut.
fn clean_status(status: &mut Value) {
    let Some(causes) = status["details"]["causes"].as_array_mut() else { return };
    let is_one = causes.len() == 1;
    causes.sort_by_key(Value::to_string);
    if is_one {
        return;
    }
    if let Some(message) = status["message"].as_str()
        && let Some((before, _)) = message.split_once(": [")
    {
        status["message"] = json!(format!("{before}: […]"));
    }
}

fn picked(pick: &Pick, document: &Value) -> Value {
    match pick {
        Pick::Resources(plural) if document["kind"] == "APIGroupDiscoveryList" => aggregated(plural, document),
        Pick::Resources(plural) => {
            let belongs = |resource: &&Value| {
                resource["name"].as_str().is_some_and(|name| name.split('/').next() == Some(plural.as_str()))
            };
            let resources = document["resources"].as_array().into_iter().flatten();
            let mut rest = document.clone();
            rest["resources"] = resources.filter(belongs).cloned().collect();
            rest
        }
        Pick::Group(name) => {
            let groups = document["groups"].as_array().into_iter().flatten();
            groups.filter(|group| group["name"] == name.as_str()).cloned().collect()
        }
        Pick::Schemas { gvk, plural } => schemas(gvk, plural, document),
    }
}

/// `which` is `GROUP/VERSION/PLURAL`.
fn aggregated(which: &str, document: &Value) -> Value {
    let mut parts = which.split('/');
    let (group, version, plural) = (parts.next(), parts.next(), parts.next());
    let items = document["items"].as_array().into_iter().flatten();
    let of_group =
        items.filter(|item| item["metadata"]["name"].as_str().unwrap_or_default() == group.unwrap_or_default());
    let versions = of_group.flat_map(|item| item["versions"].as_array().into_iter().flatten());
    let resources = versions
        .filter(|item| item["version"].as_str() == version)
        .flat_map(|item| item["resources"].as_array().into_iter().flatten());
    resources.filter(|resource| resource["resource"].as_str() == plural).cloned().collect()
}

fn schemas(gvk: &str, plural: &str, document: &Value) -> Value {
    let all = &document["components"]["schemas"];
    let is_it = |schema: &Value| {
        schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten().any(|of| {
            let text = |name: &str| of[name].as_str().unwrap_or_default().to_owned();
            format!("{}/{}/{}", text("group"), text("version"), text("kind")) == gvk
        })
    };
    let mut wanted: Vec<String> = all
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, schema)| is_it(schema))
        .map(|(name, _)| name.clone())
        .collect();
    let mut found = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let Some(schema) = all.get(&name) else { continue };
        if found.insert(name, hash(&structure(schema))).is_none() {
            references(schema, &mut wanted);
            wanted.retain(|name| !found.contains_key(name));
        }
    }
    let mut paths = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        if path.split('/').any(|part| part == plural) {
            let methods = operations.as_object().into_iter().flatten().map(|(method, _)| method.clone());
            paths.insert(path.clone(), methods.filter(|method| method != "parameters").collect::<Vec<_>>());
        }
    }
    json!({"schemas": found, "paths": paths})
}

/// A schema without its texts and the enumerations that are part of them.
fn structure(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            let kept = members.iter().filter(|(name, value)| {
                !(*name == "description" && value.is_string() || *name == "enum" && value.is_array())
            });
            let mut structure: Map<String, Value> =
                kept.map(|(name, member)| (name.clone(), self::structure(member))).collect();
            if let Some(required) = structure.get_mut("required") {
                sort(required);
            }
            Value::Object(structure)
        }
        Value::Array(items) => items.iter().map(structure).collect(),
        other => other.clone(),
    }
}

fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(members) => {
            if let Some(name) = members.get("$ref").and_then(Value::as_str).and_then(|at| at.rsplit('/').next()) {
                found.push(name.to_owned());
            }
            members.values().for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn hash(value: &Value) -> String {
    Sha256::digest(value.to_string().as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: Value, expected: Value) {
        let request = Request {
            id: String::new(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            content_type: String::new(),
            accept: String::new(),
            body: None,
            pick: None,
        };
        let answer = Answer { code: 200, content_type: String::new(), warnings: Vec::new(), body };
        assert_eq!(canonical(&request, &answer).value(), json!({"code": 200, "body": expected}));
    }

    #[test]
    fn what_differs_by_chance_is_marked() {
        check(
            json!({"metadata": {"name": "a", "uid": "x", "resourceVersion": "5"}, "spec": {"clusterIP": "10.96.3.4"}}),
            json!({"metadata": {"name": "a", "uid": "*", "resourceVersion": "*"}, "spec": {"clusterIP": "*"}}),
        );
        check(json!({"message": "uid 0b0b6a0e-0000-4000-8000-000000000001 of x"}), json!({"message": "uid UID of x"}));
        check(json!({"name": "kube-api-access-x7k2p"}), json!({"name": "kube-api-access-*"}));
    }

    #[test]
    fn causes_have_one_order() {
        let status = |causes: Value, rest: &str| json!({"kind": "Status", "message": format!("x is invalid: {rest}"), "details": {"causes": causes}});
        check(status(json!(["b", "a"]), "[b, a]"), status(json!(["a", "b"]), "[…]"));
        check(status(json!(["b"]), "b"), status(json!(["b"]), "b"));
    }

    #[test]
    fn ages_are_marked() {
        let table =
            |age: &str| json!({"kind": "Table", "columnDefinitions": [{"name": "Age"}], "rows": [{"cells": [age]}]});
        check(table("5s"), table("*"));
        check(table("<unknown>"), table("<unknown>"));
    }
}
