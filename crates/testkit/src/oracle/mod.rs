//! The oracle: the same requests to a real kube-apiserver and to coracle, and every difference between the two answers.
//!
//! [`cases::script`] makes the requests of a kind from its base objects, [`canonical`] removes what must differ between two
//! servers, [`compare`] finds what else does, and [`golden`] keeps what upstream said, so that the tests need no Go.

pub mod accepted;
pub mod canonical;
pub mod cases;
pub mod compare;
pub mod golden;
pub mod mutate;
mod sub_resources;
pub mod subjects;

use std::collections::BTreeMap;

use serde_json::Value;

/// How requests name themselves; upstream takes the first word as field manager.
pub const USER_AGENT: &str = "oracle/1";

/// One request of a script. `$rv` and `$uid` in the body stand for those of the object that the path names.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Says what it is about, unique within a script.
    pub id: String,
    pub method: String,
    /// With the query.
    pub path: String,
    /// Of the body; empty for JSON.
    pub content_type: String,
    /// Empty for JSON.
    pub accept: String,
    pub body: Option<Value>,
    /// The part of a long answer that is compared.
    pub pick: Option<Pick>,
}

impl Answer {
    /// An answer as it came over the wire.
    pub fn new(code: u16, content_type: &str, warnings: Vec<String>, text: String) -> Self {
        let content_type = if content_type == "application/json" { "" } else { content_type }.to_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { code, content_type, warnings, body }
    }
}

impl Request {
    /// Whether nothing comes of it. The options of a deletion are in its body, where it has one.
    pub fn is_dry(&self) -> bool {
        let in_body = self.body.as_ref().filter(|_| self.method == "DELETE");
        in_body.map_or_else(|| self.path.contains("dryRun=All"), |options| options["dryRun"].is_array())
    }
}

/// A part of a document that is about all kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The resources of this plural and their sub-resources, of a discovery document.
    Resources(String),
    /// The group of this name, of a list of groups.
    Group(String),
    /// The schemas that `GROUP/VERSION/KIND` is made of, each as a hash, and the methods of the paths of this plural.
    Schemas { gvk: String, plural: String },
}

/// What a server said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: u16,
    /// Empty for JSON.
    pub content_type: String,
    pub warnings: Vec<String>,
    /// A string when it is not JSON.
    pub body: Value,
}

/// What one side has answered so far, as far as later requests depend on it.
#[derive(Debug, Default)]
pub struct Memory {
    /// Revision and uid by the object's path.
    objects: BTreeMap<String, (Value, Value)>,
}

impl Memory {
    /// The body as it is sent to this side.
    pub fn fill(&self, request: &Request) -> Option<Value> {
        let (revision, uid) = self.objects.get(object_path(&request.path)).cloned().unwrap_or_default();
        let mut body = request.body.clone()?;
        replace(&mut body, &revision, &uid);
        Some(body)
    }

    /// Remembers what an answer tells of the object.
    pub fn note(&mut self, request: &Request, answer: &Answer) {
        if !(200..300).contains(&answer.code) || request.is_dry() {
            return;
        }
        let metadata = &answer.body["metadata"];
        let mut path = object_path(&request.path).to_owned();
        let Some(name) = metadata["name"].as_str() else { return };
        if request.method == "POST" && !path.ends_with(&format!("/{name}")) {
            path = format!("{path}/{name}");
        }
        if metadata["uid"].is_string() {
            self.objects.insert(path, (metadata["resourceVersion"].clone(), metadata["uid"].clone()));
        }
    }
}

/// The path without query and sub-resource.
fn object_path(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or(path);
    ["/status", "/scale", "/finalize", "/binding", "/eviction", "/ephemeralcontainers", "/resize", "/token"]
        .iter()
        .find_map(|sub| path.strip_suffix(sub))
        .unwrap_or(path)
}

fn replace(value: &mut Value, revision: &Value, uid: &Value) {
    match value {
        Value::String(text) if text == "$rv" => *value = revision.clone(),
        Value::String(text) if text == "$uid" => *value = uid.clone(),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, revision, uid)),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, revision, uid)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
