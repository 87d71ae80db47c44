//! Lists: at which revision, in which pages.
//!
//! Source: apiserver `pkg/storage/etcd3/store.go` (`GetList`), `pkg/storage/continue.go`; kubernetes.io, API concepts.

use std::sync::Arc;

use api::field;
use api::key::Key;
use api::object::Object;
use api::status::Status;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};
use serde::{Deserialize, Serialize};
use store::Snapshot;

use super::select::Selection;
use super::{Registry, store_failure, too_new};
use crate::path::Query;

/// The parameters of a list or watch that say when, not what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// `None` when unset.
    pub resource_version: Option<u64>,
    pub exact: Option<bool>,
    /// 0 is without limit.
    pub limit: usize,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
    pub bookmarks: bool,
    pub timeout_seconds: Option<u64>,
}

/// One page.
pub struct Listed {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    /// Where the next page begins.
    pub next: Option<String>,
    /// How many come after this page, when that is known.
    pub remaining: Option<u64>,
}

/// A refused list. A token that has expired comes with one that begins at the same place in the current state.
#[derive(Debug)]
pub struct Refused {
    pub status: Status,
    pub fresh: Option<String>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { status, fresh: None }
    }
}

impl When {
    /// Reads the query of a list (`watch` false) or of a watch.
    ///
    /// # Errors
    /// 400 for values that are not numbers, 422 for combinations that upstream forbids.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let number = |name: &str| match query.get(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                Status::bad_request(format!("invalid {name} {text:?}: it must be a whole number that is not negative"))
            }),
        };
        let given = query.get("resourceVersionMatch").unwrap_or_default();
        let when = Self {
            resource_version: number("resourceVersion")?,
            exact: match given {
                "" => None,
                other => Some(other == "Exact"),
            },
            limit: usize::try_from(number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            continue_token: query.get("continue").unwrap_or_default().to_owned(),
            send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: number("timeoutSeconds")?,
        };
        let errors = if watch { when.watch_errors(given) } else { when.list_errors(given) };
        if errors.is_empty() { Ok(when) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
    }

    fn list_errors(&self, given: &str) -> Vec<field::Error> {
        let path = field::Path::new("resourceVersionMatch");
        let mut errors = Vec::new();
        if !given.is_empty() {
            if self.resource_version.is_none() {
                errors.push(field::Error::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(field::Error::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !["Exact", "NotOlderThan"].contains(&given) {
                errors.push(field::Error::not_supported(&path, given, &["Exact", "NotOlderThan", ""]));
            }
            if given == "Exact" && self.resource_version == Some(0) {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(field::Error::forbidden(&path, why));
            }
        }
        if self.send_initial_events.is_some() {
            let path = field::Path::new("sendInitialEvents");
            errors.push(field::Error::forbidden(&path, "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    fn watch_errors(&self, given: &str) -> Vec<field::Error> {
        let path = field::Path::new("resourceVersionMatch");
        let mut errors = Vec::new();
        if self.send_initial_events.is_some() && given != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(field::Error::forbidden(&path, why));
        }
        if !given.is_empty() {
            if self.send_initial_events.is_none() {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.push(field::Error::forbidden(&path, why));
            }
            if given != "NotOlderThan" {
                errors.push(field::Error::not_supported(&path, given, &["NotOlderThan"]));
            }
        }
        errors
    }
}

/// A continue token: the revision of the first page, or -1 for the current one, and the last key sent.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    fn encode(rv: i64, start: &str) -> String {
        let token = Self { v: TOKEN_VERSION.to_owned(), rv, start: start.to_owned() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("it has no maps with other keys than strings"))
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let bad =
            |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|error| bad(base64_error(&error)))?;
        let token: Self = serde_json::from_slice(&json).map_err(|error| bad(api::json::go_error(&json, &error)))?;
        if token.v != TOKEN_VERSION {
            return Err(bad(format!("server does not recognize this encoded version {}", token.v)));
        }
        if token.rv == 0 {
            return Err(bad(format!("incorrect encoded start resourceVersion (version {TOKEN_VERSION})")));
        }
        if token.start.is_empty() {
            return Err(bad(format!("encoded start key empty (version {TOKEN_VERSION})")));
        }
        Ok(token)
    }
}

/// In the words of Go's `encoding/base64`.
fn base64_error(error: &DecodeError) -> String {
    let at = match error {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) | DecodeError::InvalidLength(at) => *at,
        DecodeError::InvalidPadding => 0,
    };
    format!("illegal base64 data at input byte {at}")
}

/// Whether a text is a continue token, which then is the same after it was written again.
pub(crate) fn reread(text: &str) -> bool {
    let Ok(token) = Token::decode(text) else { return false };
    let again = Token::decode(&Token::encode(token.rv, &token.start)).expect("a token of this server's own");
    assert_eq!((token.rv, token.start), (again.rv, again.start));
    true
}

const TOKEN_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
const REVISION_EXPIRED: &str = "The resourceVersion for the provided list is too old.";

impl Registry {
    /// One page of a selection.
    ///
    /// # Errors
    /// 400 for a token that is none, 410 for a revision that is compacted away, 504 for one that is not there yet.
    pub async fn list(&self, selection: &Selection, when: &When) -> Result<Listed, Refused> {
        let prefix = Key::resource_prefix(&selection.served.kind.names.resource);
        let (snapshot, after) = if when.continue_token.is_empty() {
            (self.snapshot_when(when).await?, None)
        } else {
            let token = Token::decode(&when.continue_token)?;
            if when.resource_version.is_some_and(|revision| revision != 0) {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Status::bad_request(why).into());
            }
            let snapshot = match u64::try_from(token.rv) {
                Err(_) => self.store.snapshot(),
                Ok(revision) => self.store.snapshot_at(revision).map_err(|error| match error {
                    store::Error::Compacted { .. } => {
                        Refused { status: Status::expired(TOKEN_EXPIRED), fresh: Some(Token::encode(-1, &token.start)) }
                    }
                    other => store_failure(&other).into(),
                })?,
            };
            (snapshot, Some(format!("{prefix}{}", token.start)))
        };
        let mut found = self.select(&snapshot, selection, after.as_deref());
        if when.limit == 0 {
            let objects = found.cloned().collect();
            return Ok(Listed { revision: snapshot.revision(), objects, next: None, remaining: None });
        }
        let objects: Vec<_> = found.by_ref().take(when.limit).cloned().collect();
        let more = found.next().is_some();
        // Behind a selector the rest would have to be read to be counted; upstream leaves it out.
        let remaining = (more && selection.is_everything()).then(|| 1 + found.count() as u64);
        let next = more.then(|| objects.last()).flatten().map(|last| {
            let start = last.key().as_str().strip_prefix(&prefix).expect("every key of a kind has its prefix");
            Token::encode(i64::try_from(snapshot.revision()).unwrap_or(-1), start)
        });
        Ok(Listed { revision: snapshot.revision(), objects, next, remaining })
    }

    async fn snapshot_when(&self, when: &When) -> Result<Snapshot, Status> {
        let revision = when.resource_version.unwrap_or(0);
        // Before resourceVersionMatch, a limited list of a given revision was exact.
        let exact = when.exact.unwrap_or(when.limit > 0) && revision > 0;
        if !exact {
            return self.at_least(revision).await;
        }
        match self.store.snapshot_at(revision) {
            Ok(snapshot) => Ok(snapshot),
            Err(store::Error::Compacted { .. }) => Err(Status::expired(REVISION_EXPIRED)),
            Err(store::Error::Future { requested, current }) => Err(too_new(requested, current)),
            Err(other) => Err(store_failure(&other)),
        }
    }

    /// The objects of a selection behind a key, in key order.
    pub fn select<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        selection: &'a Selection,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let prefix = selection.prefix();
        // A place before the prefix is no place in it.
        snapshot.range(prefix, after.filter(|key| *key >= prefix)).filter(|object| self.covers(selection, object))
    }
}
