//! Who owns which fields of an object: `metadata.managedFields`, read and written.
//!
//! Source: apimachinery `pkg/util/managedfields/internal/{managedfields,capmanagers,fieldmanager}.go`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::Set;
use crate::field::quoted;

/// What tells the entries of `managedFields` apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub manager: String,
    pub operation: Operation,
    /// Empty for [`Operation::Apply`]: whoever applies owns one entry, whichever version they apply.
    api_version: String,
    pub subresource: String,
}

/// How a manager came by its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    pub set: Set,
    /// The version that the fields are named in.
    pub api_version: String,
    /// RFC 3339 in seconds.
    pub time: Option<String>,
}

/// Everybody who owns something of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(pub BTreeMap<Identity, Owned>);

/// More managers that update than this are made one, the oldest first.
const MOST_UPDATERS: usize = 10;
/// Who owns what those owned.
const OLD_UPDATES: &str = "ancient-changes";

impl Identity {
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = match operation {
            Operation::Apply => String::new(),
            Operation::Update => api_version.to_owned(),
        };
        Self { manager: manager.to_owned(), operation, api_version, subresource: subresource.to_owned() }
    }

    fn parse(entry: &Value) -> Result<Self, String> {
        let operation = match text(entry, "operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let api_version = text(entry, "apiVersion");
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        Ok(Self::new(text(entry, "manager"), operation, api_version, text(entry, "subresource")))
    }
}

/// As conflicts name a manager.
impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", quoted(&self.manager))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", quoted(&self.subresource))?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_default()
}

impl Managers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `metadata.managedFields`; null is nobody.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn decode(entries: &Value) -> Result<Self, String> {
        let mut out = Self::default();
        for (at, entry) in entries.as_array().into_iter().flatten().enumerate() {
            let identity = Identity::parse(entry)?;
            match text(entry, "fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {at}")),
                other => return Err(format!("invalid fieldsType {} in managed fields entry {at}", quoted(other))),
            }
            let set = match &entry["fieldsV1"] {
                Value::Null => Set::EMPTY,
                fields => Set::from_json(fields).map_err(|why| format!("error decoding set: {why}"))?,
            };
            let owned = Owned {
                set,
                api_version: text(entry, "apiVersion").to_owned(),
                time: entry["time"].as_str().map(str::to_owned),
            };
            out.0.insert(identity, owned);
        }
        Ok(out)
    }

    /// Writes `metadata.managedFields`, in upstream's order; nobody is `None`.
    pub fn encode(&self) -> Option<Value> {
        if self.is_empty() {
            return None;
        }
        let mut entries: Vec<(&Identity, &Owned)> = self.0.iter().collect();
        entries.sort_by_key(|(identity, owned)| {
            (identity.operation, &owned.time, &identity.manager, &owned.api_version, &identity.subresource)
        });
        Some(Value::Array(entries.into_iter().map(|(identity, owned)| entry(identity, owned)).collect()))
    }

    /// Makes the oldest managers that update one, while there are too many of them.
    pub fn cap(&mut self) {
        let updates = |(identity, _): &(&Identity, &Owned)| identity.operation == Operation::Update;
        let mut updaters: Vec<(Option<String>, Identity)> =
            self.0.iter().filter(updates).map(|(identity, owned)| (owned.time.clone(), identity.clone())).collect();
        updaters.sort();
        let mut count = updaters.len();
        let mut first_of: BTreeMap<String, Identity> = BTreeMap::new();
        for (time, identity) in updaters {
            if count <= MOST_UPDATERS {
                return;
            }
            let Some(version) = self.0.get(&identity).map(|owned| owned.api_version.clone()) else { continue };
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, identity);
                continue;
            };
            let bucket = Identity::new(OLD_UPDATES, Operation::Update, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(owned) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), owned);
            }
            let Some(merged) = self.0.remove(&identity) else { continue };
            let owned = self.0.entry(bucket).or_insert_with(|| Owned { set: Set::EMPTY, ..merged.clone() });
            owned.set = std::mem::take(&mut owned.set).union(merged.set);
            // That of the later one.
            owned.time = time;
            count -= 1;
        }
    }
}

fn entry(identity: &Identity, owned: &Owned) -> Value {
    let mut out = Map::new();
    let mut put = |field: &str, value: Value| drop(out.insert(field.to_owned(), value));
    put("operation", if identity.operation == Operation::Apply { "Apply" } else { "Update" }.into());
    put("apiVersion", owned.api_version.as_str().into());
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", owned.set.to_json());
    if !identity.manager.is_empty() {
        put("manager", identity.manager.as_str().into());
    }
    if !identity.subresource.is_empty() {
        put("subresource", identity.subresource.as_str().into());
    }
    if let Some(time) = &owned.time {
        put("time", time.as_str().into());
    }
    Value::Object(out)
}

/// Whether a request's `managedFields` say that nobody is to own anything: an empty list, or one empty entry.
pub fn is_reset(entries: &Value) -> bool {
    match entries.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([entry]) => *entry == json!({}),
        _ => false,
    }
}
