//! What clients of the API did and saw, as values.

use std::collections::BTreeMap;

/// Microseconds since the run began.
pub type Moment = u64;

/// A revision of the store, and what it wrote.
pub type Version = (u64, String);

/// What a client asked for. Every value that is written is written by one operation only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Create {
        value: String,
    },
    Get,
    List,
    /// Only over `expected` when it is given: a revision as resourceVersion.
    Replace {
        value: String,
        expected: Option<u64>,
    },
    Delete {
        expected: Option<u64>,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written(u64),
    Read(Version),
    /// Everything, as of a revision.
    Listed {
        revision: u64,
        items: BTreeMap<String, Version>,
    },
    Deleted,
    /// 404
    Absent,
    /// 409: there is such an object already.
    Exists,
    /// 409: the object is not the expected one.
    Conflict,
    /// No answer, or one that does not tell whether it was done.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// `""` for lists.
    pub key: String,
    pub action: Action,
    pub outcome: Outcome,
    pub began: Moment,
    pub ended: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Added,
    Modified,
    Deleted,
}

/// One event of a watch; a bookmark is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: u64,
    pub sort: Sort,
    pub key: String,
    pub value: String,
    pub seen: Moment,
}

/// A watch, resumed where it broke off, that must tell of every change after `after` up to `reached`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Which watcher's it is.
    pub of: String,
    pub after: u64,
    pub reached: u64,
    pub events: Vec<Event>,
}
