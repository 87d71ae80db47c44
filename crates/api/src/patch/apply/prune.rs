//! Takes away what a manager applied the last time, does not apply any more, and nobody else owns.
//!
//! Source: structured-merge-diff `merge/update.go` (`prune`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::Write;
use super::atom::{Atom, with_named};
use super::compare::fields;
use super::managers::{Managers, Owned};
use super::merge::remove;
use super::set::Set;
use crate::schema::Type;

impl Write<'_> {
    /// Returns `merged` without what only `last` had. `managers` have the new set already.
    pub(super) fn prune(&self, merged: Value, managers: &Managers, last: &Owned) -> Value {
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for manager in managers.0.values() {
            let set = owned.entry(&manager.api_version).or_default();
            *set = std::mem::take(set).union(manager.set.clone());
        }
        if owned.get(&*last.api_version).is_some_and(|owned| last.set.clone().difference(owned).is_empty()) {
            return merged;
        }
        let version = last.api_version.as_str();
        let (Some(of), Some(merged_then)) =
            (self.versions.of(version), self.convert(&merged, self.api_version, version))
        else {
            return merged;
        };
        let named = |of: Type<'_>, set: &Set| with_named(set, Some(Atom::Struct(of)));
        let mut pruned = Place { value: remove(of, &merged_then, &named(of, &last.set)), version: version.to_owned() };
        let mut whole = Place { value: merged_then.clone(), version: version.to_owned() };
        // The last version first: what its conversion needs is back before it is converted.
        let first = owned.remove(version).map(|set| (version, set));
        for (version, set) in first.into_iter().chain(owned) {
            let (Some(of), Some(a), Some(b)) =
                (self.versions.of(version), self.at(&whole, version), self.at(&pruned, version))
            else {
                continue;
            };
            let kept = named(of, &fields(of, &b)).union(named(of, &set));
            let gone = named(of, &fields(of, &a)).difference(&kept);
            pruned = Place { value: remove(of, &a, &gone), version: version.to_owned() };
            whole = Place { value: a, version: version.to_owned() };
        }
        let Some(pruned) = self.at(&pruned, version) else { return merged };
        // Only what the manager had goes, though nobody owns the rest.
        let gone = named(of, &fields(of, &merged_then)).difference(&named(of, &fields(of, &pruned)));
        let gone = gone.intersection(&named(of, &last.set));
        self.convert(&remove(of, &merged_then, &gone), version, self.api_version).unwrap_or(merged)
    }

    fn at(&self, place: &Place, version: &str) -> Option<Value> {
        self.convert(&place.value, &place.version, version)
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        if from == to { Some(object.clone()) } else { self.versions.convert(object, from, to) }
    }
}

/// An object in a version.
struct Place {
    value: Value,
    version: String,
}
