//! Server-side apply: who owns which field of an object, and what applying a configuration makes of it.
//!
//! Source: structured-merge-diff `merge/{update,conflict}.go`, apimachinery `pkg/util/managedfields/internal`. Decisions
//! only: the time, the manager's name and the object are given.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::schema::Type;
use crate::status::Cause;

mod atom;
mod check;
mod compare;
mod managers;
mod merge;
mod prune;
pub mod scale;
mod set;
mod step;

use atom::reconcile;
use compare::{Comparison, fields, has_keys};
pub use managers::{Identity, Managers, Operation};
use managers::{Owned, is_reset};
pub use set::Set;

/// The versions of a kind.
pub trait Versions {
    /// The type of a version that is served.
    fn of(&self, api_version: &str) -> Option<Type<'_>>;

    /// An object in another version; `None` when that is not served.
    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value>;
}

/// One write, as far as ownership is concerned. Objects are in its version.
pub struct Write<'a> {
    pub versions: &'a dyn Versions,
    pub api_version: &'a str,
    pub of: Type<'a>,
    pub kind: &'a str,
    pub subresource: &'a str,
    pub manager: &'a str,
    /// What this endpoint keeps as it is, whatever is written: nobody owns it by a write through it.
    pub resets: &'a Set,
    /// RFC 3339 in seconds.
    pub now: &'a str,
}

/// What applying a configuration makes of an object.
#[derive(Debug, PartialEq)]
pub struct Applied {
    /// `None` when the object has all that was applied.
    pub object: Option<Value>,
    pub managed_fields: Option<Value>,
}

/// Why a configuration cannot be applied.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Status 400.
    #[error("{0}")]
    BadRequest(String),
    /// Others own what would change: status 409.
    #[error("{message}")]
    Conflicts { message: String, causes: Vec<Cause> },
    /// It is not of its type: status 500, as upstream has it.
    #[error("{0}")]
    Unfit(String),
}

/// What changes by itself, or names the object: nobody owns it.
static NOBODYS: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owns what was there before anybody was noted.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Conflicts by who owns the fields.
type Conflicts = BTreeMap<Identity, Set>;

impl Write<'_> {
    /// Returns the `managedFields` of an object that is created (`live` is `None`) or changed to `new`.
    pub fn update(&self, live: Option<&Value>, new: &Value) -> Option<Value> {
        let mut managers = self.noted(live, new);
        if managers.is_empty() && live.is_some() {
            // Nobody has been noted from the beginning, or a request said so.
            return None;
        }
        self.track(live.unwrap_or(&json!({})), new, &mut managers, self.manager);
        managers.encode()
    }

    /// Applies a configuration to an object, or to nothing.
    ///
    /// # Errors
    /// When the configuration is not of its type, or others own what it would change and there is no `force`.
    pub fn apply(&self, live: Option<&Value>, config: &Value, force: bool) -> Result<Applied, Error> {
        let nothing = json!({});
        let live = live.unwrap_or(&nothing);
        let managers = Managers::decode(&live["metadata"]["managedFields"])
            .map_err(|why| Error::Unfit(format!("failed to decode managed fields: {why}")))?;
        let name = self.check(config)?;
        let applied = match self.merged(live, config, managers.clone(), force)? {
            Err(conflicts) => {
                let allowed = if self.manager == "kubectl" { self.last_applied(live) } else { Set::EMPTY };
                let rest: Conflicts = conflicts
                    .into_iter()
                    .map(|(identity, set)| (identity, set.difference(&allowed)))
                    .filter(|(_, set)| !set.is_empty())
                    .collect();
                if !rest.is_empty() {
                    return Err(refused(&rest));
                }
                self.merged(live, config, managers, true)?.map_err(|conflicts| refused(&conflicts))?
            }
            Ok(applied) => applied,
        };
        self.with_last_applied(applied, live, config, &name)
    }

    /// Whether the configuration is one; returns how errors name it.
    fn check(&self, config: &Value) -> Result<String, Error> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&config["apiVersion"]), text(&config["kind"]));
        let (group, bare) = version.split_once('/').unwrap_or(("", &version));
        let name = format!("{group}/{bare}, Kind={kind}");
        if version != self.api_version || kind != self.kind {
            return Err(Error::BadRequest(format!("invalid object type: {name}")));
        }
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Error::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        let name = format!("{}/{}; {name}", text(&config["metadata"]["namespace"]), text(&config["metadata"]["name"]));
        check::check(self.of, config)
            .map_err(|why| Error::Unfit(format!("failed to create typed patch object ({name}): {why}")))?;
        Ok(name)
    }

    /// The managers that count: those of the request, which may change them, or those of the object.
    fn noted(&self, live: Option<&Value>, new: &Value) -> Managers {
        let live = || {
            let entries = live.map(|live| &live["metadata"]["managedFields"]);
            entries.and_then(|entries| Managers::decode(entries).ok()).unwrap_or_default()
        };
        if !self.subresource.is_empty() {
            return live();
        }
        let entries = &new["metadata"]["managedFields"];
        if is_reset(entries) {
            return Managers::default();
        }
        match Managers::decode(entries) {
            Ok(managers) if !managers.is_empty() => managers,
            // Clients that know nothing of them must not lose them.
            _ => live(),
        }
    }

    /// Gives what differs between two objects to a manager.
    fn track(&self, live: &Value, new: &Value, managers: &mut Managers, manager: &str) {
        if !has_keys(atom::Atom::Struct(self.of), new) || !has_keys(atom::Atom::Struct(self.of), live) {
            // Upstream cannot tell what such an object has, and leaves its managers as they are.
            return;
        }
        self.reconcile(managers);
        let compared = self.compare(live, new);
        let changed = compared.modified.union(compared.added);
        let mine = (changed, compared.removed);
        let conflicts = self.take((live, new), &mine, managers, None, true);
        debug_assert!(conflicts.is_ok(), "an update takes what it changes");
        let set = mine.0.difference(&NOBODYS);
        if !set.is_empty() {
            let manager = if manager.is_empty() { "unknown" } else { manager };
            let identity = Identity::new(manager, Operation::Update, self.api_version, self.subresource);
            let previous = managers.0.remove(&identity).map_or(Set::EMPTY, |owned| owned.set);
            managers.0.insert(identity, self.owned(previous.union(set)));
        }
        managers.cap();
    }

    fn owned(&self, set: Set) -> Owned {
        Owned { set, api_version: self.api_version.to_owned(), time: Some(self.now.to_owned()) }
    }

    fn compare(&self, live: &Value, new: &Value) -> Comparison {
        Comparison::new(self.of, live, new).without(self.resets)
    }

    fn reconcile(&self, managers: &mut Managers) {
        for owned in managers.0.values_mut() {
            if let Some(of) = self.versions.of(&owned.api_version) {
                reconcile(&mut owned.set, atom::Atom::Struct(of));
            }
        }
    }

    /// Takes what differs between two objects from all other managers than `me`; without `force`, what they would lose
    /// is a conflict. What is changed and removed is given for the version of the write.
    fn take(
        &self,
        (live, new): (&Value, &Value),
        mine: &(Set, Set),
        managers: &mut Managers,
        me: Option<&Identity>,
        force: bool,
    ) -> Result<(), Conflicts> {
        let mut compared: BTreeMap<String, Option<Cow<'_, (Set, Set)>>> =
            BTreeMap::from([(self.api_version.to_owned(), Some(Cow::Borrowed(mine)))]);
        let mut conflicts = Conflicts::new();
        for (identity, owned) in managers.0.iter().filter(|(identity, _)| Some(*identity) != me) {
            let changes = compared.entry(owned.api_version.clone()).or_insert_with(|| {
                let changes = self.compare_in(&owned.api_version, live, new)?;
                Some(Cow::Owned((changes.modified.union(changes.added), changes.removed)))
            });
            if let Some(changes) = changes {
                let lost = owned.set.intersection(&changes.0);
                if !lost.is_empty() {
                    conflicts.insert(identity.clone(), lost);
                }
            }
        }
        if !force && !conflicts.is_empty() {
            return Err(conflicts);
        }
        managers.0.retain(|identity, owned| {
            if Some(identity) == me {
                return !owned.set.is_empty();
            }
            // Nothing can be said of a version that is served no more.
            let Some(Some(changes)) = compared.get(&owned.api_version) else { return false };
            let removed = &changes.1;
            if let Some(lost) = conflicts.get(identity) {
                owned.set = std::mem::take(&mut owned.set).difference(lost);
            }
            if !removed.is_empty() {
                owned.set = std::mem::take(&mut owned.set).difference(removed);
            }
            !owned.set.is_empty()
        });
        Ok(())
    }

    fn compare_in(&self, version: &str, live: &Value, new: &Value) -> Option<Comparison> {
        let convert = |object| self.versions.convert(object, self.api_version, version);
        Some(Comparison::new(self.versions.of(version)?, &convert(live)?, &convert(new)?).without(self.resets))
    }

    fn merged(
        &self,
        live: &Value,
        config: &Value,
        mut managers: Managers,
        force: bool,
    ) -> Result<Result<Applied, Conflicts>, Error> {
        if managers.is_empty() {
            self.track(&json!({}), live, &mut managers, BEFORE_FIRST_APPLY);
        }
        self.reconcile(&mut managers);
        let merged = merge::merge(self.of, live, config)
            .map_err(|why| Error::Unfit(format!("failed to merge config: {why}")))?;
        let me = Identity::new(self.manager, Operation::Apply, self.api_version, self.subresource);
        let last = managers.0.get(&me).cloned();
        let set = fields(self.of, config).without(self.resets);
        let time = last.as_ref().and_then(|last| last.time.clone());
        managers.0.insert(me.clone(), Owned { set, api_version: self.api_version.to_owned(), time });
        let object = match last {
            Some(last) => self.prune(merged, &managers, &last),
            None => merged,
        };
        let Comparison { added, modified, removed } = self.compare(live, &object);
        let mine = (modified.union(added), removed);
        if let Err(conflicts) = self.take((live, &object), &mine, &mut managers, Some(&me), force) {
            return Ok(Err(conflicts));
        }
        let changes = !step::same(live, &object);
        if let Some(owned) = managers.0.get_mut(&me) {
            owned.set = std::mem::take(&mut owned.set).difference(&NOBODYS);
            if changes {
                owned.time = Some(self.now.to_owned());
            }
            if owned.set.is_empty() {
                managers.0.remove(&me);
            }
        }
        Ok(Ok(Applied { object: changes.then_some(object), managed_fields: managers.encode() }))
    }

    /// What kubectl applied from its own side and nobody changed since: its owner may take it over.
    fn last_applied(&self, live: &Value) -> Set {
        let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
        let Ok(config) = serde_json::from_str::<Value>(text) else { return Set::EMPTY };
        if config["apiVersion"] != self.api_version || check::check(self.of, &config).is_err() {
            return Set::EMPTY;
        }
        let Comparison { added, modified, removed } = Comparison::new(self.of, &config, live);
        fields(self.of, &config).difference(&modified).difference(&added).difference(&removed)
    }

    /// Keeps kubectl's own note of what it applied in step, for those who go back to applying without the server.
    fn with_last_applied(
        &self,
        mut applied: Applied,
        live: &Value,
        config: &Value,
        name: &str,
    ) -> Result<Applied, Error> {
        let shown = applied.object.as_ref().unwrap_or(live);
        let noted = shown["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
        if self.manager != "kubectl" || noted.is_empty() {
            return Ok(applied);
        }
        let mut config = config.clone();
        if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
            annotations.remove(LAST_APPLIED);
        }
        let text = serde_json::to_string(&config)
            .map_err(|error| Error::Unfit(format!("failed to build last-applied annotation ({name}): {error}")))?
            + "\n";
        if text != noted {
            let mut object = shown.clone();
            object["metadata"]["annotations"][LAST_APPLIED] = text.into();
            applied.object = Some(object);
        }
        Ok(applied)
    }
}

fn refused(conflicts: &Conflicts) -> Error {
    let paths = |set: &Set| set.paths().iter().map(|path| set::shown(path)).collect::<Vec<_>>();
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (identity, set) in conflicts {
        lines.push(format!("conflicts with {identity}:"));
        for field in paths(set) {
            lines.push(format!("- {field}"));
            let message = format!("conflict with {identity}");
            causes.push(Cause { reason: "FieldManagerConflict".to_owned(), message, field });
        }
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    Error::Conflicts { message, causes }
}

/// The name of a manager that gave none: what its `User-Agent` has before the first slash.
///
/// Source: apiserver `pkg/endpoints/handlers/create.go`, `prefixFromUserAgent`.
pub fn manager_of_agent(agent: &str) -> String {
    let prefix = agent.split('/').next().unwrap_or_default();
    let mut out = String::new();
    for c in prefix.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > crate::validation::MANAGER_MAX {
            break;
        }
        out.push(c);
    }
    out
}

/// Whether two `managedFields` say the same but for the times.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let timeless = |entry: &Value| -> Map<String, Value> {
        let members = entry.as_object().into_iter().flatten().filter(|(name, _)| *name != "time");
        members.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    match (a.as_array(), b.as_array()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| timeless(a) == timeless(b)),
        _ => a == b,
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
