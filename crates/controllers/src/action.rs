//! What a controller may decide to do: one closed list, carried out by the shell alone.

use std::fmt;
use std::time::Duration;

use client::events::Severity;
use client::{PatchType, Propagation, Resource};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates `copies` objects, in batches of 1, 2, 4 … so that an error that meets all of them is met once.
    /// Source: kubernetes `replica_set.go`, `slowStartBatch`.
    Create {
        of: Resource,
        namespace: String,
        object: Value,
        copies: usize,
        notes: Notes,
    },
    /// Replaces the object or its sub-resource; a conflict means that the key is run again on what is stored then.
    Update {
        of: Resource,
        subresource: Option<&'static str>,
        object: Value,
    },
    /// Patches one object. `living` is looked up at the server just before: an owner that is gone or being deleted adopts nothing.
    Patch {
        of: Resource,
        namespace: String,
        name: String,
        subresource: Option<&'static str>,
        kind: PatchType,
        patch: Value,
        living: Option<Living>,
        notes: Notes,
    },
    Delete {
        of: Resource,
        namespace: String,
        name: String,
        uid: String,
        how: Deletion,
        notes: Notes,
    },
    /// Says something about an object.
    Event {
        about: Box<ObjectReference>,
        note: Note,
    },
    /// Runs the key again once the view of a resource shows `revision`.
    Await {
        of: Resource,
        revision: u64,
    },
    /// Runs the key again after a while, if nothing else runs it earlier.
    RunAgain {
        after: Duration,
    },
}

/// An object that must exist with this uid and not be on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    pub of: Resource,
    pub namespace: String,
    pub name: String,
    /// Empty for any object of that name.
    pub uid: String,
}

/// How an object is deleted beside its uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    pub propagation: Option<Propagation>,
    pub grace_period_seconds: Option<i64>,
    /// Only this version of it.
    pub revision: Option<u64>,
    /// Objects that are looked up at the server just before: if one of them lives, nothing is deleted.
    pub absent: Vec<Living>,
}

/// The event to record once an action succeeded, and the one once it failed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes(Option<Box<Outcomes>>);

#[derive(Clone, Debug, PartialEq)]
struct Outcomes {
    about: ObjectReference,
    success: Option<Note>,
    failure: Option<Note>,
}

impl Notes {
    pub fn none() -> Self {
        Self(None)
    }

    /// In messages `{}` stands for the name of the object written, and for the error.
    pub fn new(about: ObjectReference, success: Option<Note>, failure: Option<Note>) -> Self {
        Self(Some(Box::new(Outcomes { about, success, failure })))
    }

    pub fn success(&self) -> Option<(&ObjectReference, &Note)> {
        self.0.as_ref().and_then(|notes| Some((&notes.about, notes.success.as_ref()?)))
    }

    pub fn failure(&self) -> Option<(&ObjectReference, &Note)> {
        self.0.as_ref().and_then(|notes| Some((&notes.about, notes.failure.as_ref()?)))
    }
}

/// An event's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

impl Note {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Normal, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, reason, message: message.into() }
    }
}

/// One line for the log and for tests.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { of, object, copies, .. } => {
                let metadata = &object["metadata"];
                let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default();
                write!(f, "create {copies} {} {name}", of.resource)
            }
            Self::Update { of, subresource, object } => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                match subresource {
                    Some("status") => write!(f, "status {} {name} {}", of.resource, object["status"]),
                    Some(other) => write!(f, "update {} {name} {other}", of.resource),
                    None => write!(f, "update {} {name}", of.resource),
                }
            }
            Self::Patch { of, name, subresource, patch, .. } => {
                let subresource = subresource.map(|name| format!("{name} ")).unwrap_or_default();
                write!(f, "patch {} {name} {subresource}{patch}", of.resource)
            }
            Self::Delete { of, name, how, .. } => {
                write!(f, "delete {} {name}", of.resource)?;
                how.propagation.map_or(Ok(()), |propagation| write!(f, " {propagation:?}"))?;
                how.grace_period_seconds.map_or(Ok(()), |seconds| write!(f, " grace {seconds}"))
            }
            Self::Event { about, note } => {
                let (kind, name) = (about.kind.as_deref(), about.name.as_deref());
                write!(f, "event {} {} ", kind.unwrap_or_default(), name.unwrap_or_default())?;
                write!(f, "{} {}: {}", note.severity.as_str(), note.reason, note.message)
            }
            Self::Await { of, revision } => write!(f, "await {} at {revision}", of.resource),
            Self::RunAgain { after } => write!(f, "run again after {after:?}"),
        }
    }
}
