//! Whether a history can be: one sequence of revisions that explains every answer and every event.
//!
//! The revisions order all changes, so that nothing need be searched: a history is strictly serializable when moments can be
//! given to the revisions that grow as they do and lie within every operation that rests on them. The rules of watches are
//! those of etcd (`tests/robustness/validate`): ordered, unique, reliable, resumable.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, Moment, Operation, Outcome, Sort, Stretch};

/// What must hold and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

pub const LOST: &str = "nothing acknowledged is lost";
pub const REVISIONS: &str = "revisions only grow";
pub const LINEARIZABLE: &str = "histories are linearizable";
pub const WATCHES: &str = "a watch sees each change once and in order";

/// Checks a history. All keys were absent when it began.
pub fn check(operations: &[Operation], stretches: &[Stretch]) -> Vec<Violation> {
    let mut checker = Checker::new(operations, stretches);
    checker.watches();
    checker.origins();
    checker.deletions();
    checker.lists();
    let bounds = checker.time();
    checker.refusals(&bounds);
    checker.violations
}

/// A change: what the revision put under the key, or `None` when it deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: String,
    value: Option<String>,
}

struct Checker<'a> {
    operations: &'a [Operation],
    stretches: &'a [Stretch],
    /// Every change that anybody was told of.
    log: BTreeMap<u64, Entry>,
    by_key: BTreeMap<String, Vec<u64>>,
    /// The operation that wrote a value.
    authors: BTreeMap<String, usize>,
    /// Between these nothing is missing from the log: after, up to.
    covered: Vec<(u64, u64)>,
    violations: Vec<Violation>,
}

/// When a revision was made: not before, not after.
struct Bounds {
    earliest: BTreeMap<u64, Moment>,
    latest: BTreeMap<u64, Moment>,
}

impl<'a> Checker<'a> {
    fn new(operations: &'a [Operation], stretches: &'a [Stretch]) -> Self {
        let stretched = stretches.iter().map(|stretch| (stretch.after, stretch.reached));
        // Before the first watch began there was nothing.
        let beginning = stretches.iter().map(|stretch| (0, stretch.after)).min();
        let mut checker = Self {
            operations,
            stretches,
            log: BTreeMap::new(),
            by_key: BTreeMap::new(),
            authors: BTreeMap::new(),
            covered: union(stretched.chain(beginning).collect()),
            violations: Vec::new(),
        };
        for event in stretches.iter().flat_map(|stretch| &stretch.events) {
            let value = (event.sort != Sort::Deleted).then(|| event.value.clone());
            checker.learn(event.revision, &event.key, value);
        }
        for (index, operation) in operations.iter().enumerate() {
            let written = match &operation.action {
                Action::Create { value } | Action::Replace { value, .. } => Some(value),
                Action::Get | Action::List | Action::Delete { .. } => None,
            };
            if let Some(value) = written {
                checker.authors.insert(value.clone(), index);
            }
            match &operation.outcome {
                Outcome::Written(revision) => checker.learn(*revision, &operation.key, written.cloned()),
                Outcome::Read((revision, value)) => checker.learn(*revision, &operation.key, Some(value.clone())),
                Outcome::Listed { items, .. } => {
                    for (key, (revision, value)) in items {
                        checker.learn(*revision, key, Some(value.clone()));
                    }
                }
                Outcome::Deleted | Outcome::Absent | Outcome::Exists | Outcome::Conflict | Outcome::Unknown(_) => {}
            }
        }
        for (revision, entry) in &checker.log {
            checker.by_key.entry(entry.key.clone()).or_default().push(*revision);
        }
        checker
    }

    fn learn(&mut self, revision: u64, key: &str, value: Option<String>) {
        let entry = Entry { key: key.to_owned(), value };
        match self.log.get(&revision) {
            Some(known) if *known != entry => {
                let what = format!("revision {revision} is both {} and {}", show(known), show(&entry));
                self.violate(REVISIONS, what);
            }
            Some(_) => {}
            None => drop(self.log.insert(revision, entry)),
        }
    }

    fn violate(&mut self, rule: &'static str, what: String) {
        self.violations.push(Violation { rule, what });
    }

    /// Whether no change after `from` up to `to` can be missing from the log.
    fn is_covered(&self, from: u64, to: u64) -> bool {
        self.covered.iter().any(|(after, reached)| *after <= from && to <= *reached)
    }

    /// Whether nothing can be missing from `from` on.
    fn is_covered_to_the_end(&self, from: u64) -> bool {
        self.log.last_key_value().is_none_or(|(last, _)| self.is_covered(from, *last))
    }

    /// The last change of a key before a revision.
    fn before(&self, key: &str, revision: u64) -> Option<(u64, &Entry)> {
        let revisions = self.by_key.get(key)?;
        let at = revisions.partition_point(|r| *r < revision);
        let found = *revisions.get(at.checked_sub(1)?)?;
        Some((found, &self.log[&found]))
    }

    /// The first change of a key after a revision.
    fn after(&self, key: &str, revision: u64) -> Option<(u64, &Entry)> {
        let revisions = self.by_key.get(key)?;
        let found = *revisions.get(revisions.partition_point(|r| *r <= revision))?;
        Some((found, &self.log[&found]))
    }

    fn watches(&mut self) {
        let acknowledged: BTreeSet<u64> = self.operations.iter().filter_map(|o| written(&o.outcome)).collect();
        let seen: BTreeSet<u64> = self.stretches.iter().flat_map(|s| s.events.iter().map(|e| e.revision)).collect();
        for stretch in self.stretches {
            let of = &stretch.of;
            let mut last = stretch.after;
            for event in &stretch.events {
                let (revision, key) = (event.revision, &event.key);
                if revision == last {
                    self.violate(WATCHES, format!("watch {of} was told twice of revision {revision} ({key})"));
                } else if revision < last {
                    self.violate(WATCHES, format!("watch {of} was told of {revision} ({key}) after {last}"));
                }
                last = last.max(revision);
                let was_there = self
                    .before(key, revision)
                    .and_then(|(r, entry)| self.is_covered(r, revision).then_some(entry.value.is_some()));
                let was_there = was_there.or_else(|| {
                    let is_first = self.by_key[key].first() == Some(&revision);
                    (is_first && self.is_covered(0, revision)).then_some(false)
                });
                if was_there.is_some_and(|was_there| was_there == (event.sort == Sort::Added)) {
                    let is = if was_there == Some(true) { "was there" } else { "was not there" };
                    self.violate(WATCHES, format!("watch {of}: {key} is {:?} at {revision}, yet it {is}", event.sort));
                }
            }
            let told: BTreeSet<u64> = stretch.events.iter().map(|event| event.revision).collect();
            let due: Vec<u64> = self.log.range(stretch.after + 1..=stretch.reached).map(|(r, _)| *r).collect();
            for revision in due.into_iter().filter(|revision| !told.contains(revision)) {
                let what = show(&self.log[&revision]);
                if acknowledged.contains(&revision) && !seen.contains(&revision) {
                    self.violate(LOST, format!("{what} was acknowledged at {revision}, and no watch was told of it"));
                } else {
                    self.violate(WATCHES, format!("watch {of} was not told of revision {revision}: {what}"));
                }
            }
        }
    }

    /// Every change was asked for, once, and where it was asked for.
    fn origins(&mut self) {
        let mut once = BTreeMap::new();
        for (revision, entry) in self.log.clone() {
            let before = self.before(&entry.key, revision).map(|(r, entry)| (r, entry.value.clone()));
            let sure = self.is_covered(before.as_ref().map_or(0, |(r, _)| *r), revision);
            let there = before.as_ref().filter(|(_, value)| value.is_some()).map(|(r, _)| *r);
            let Some(value) = &entry.value else { continue };
            let Some(&author) = self.authors.get(value) else {
                self.violate(LINEARIZABLE, format!("nobody wrote {}, which is revision {revision}", show(&entry)));
                continue;
            };
            let operation = &self.operations[author];
            if let Some(other) = once.insert(value.clone(), revision) {
                let what = format!("{} was written once and is revision {other} and {revision}", show(&entry));
                self.violate(REVISIONS, what);
            }
            if matches!(operation.outcome, Outcome::Absent | Outcome::Exists | Outcome::Conflict) {
                let what = format!("{} was refused ({:?}) and is revision {revision}", show(&entry), operation.outcome);
                self.violate(LINEARIZABLE, what);
            }
            if operation.key != entry.key {
                self.violate(LINEARIZABLE, format!("{} was written to {}", show(&entry), operation.key));
            }
            let wrong = match &operation.action {
                _ if !sure => None,
                Action::Create { .. } => there.map(|there| format!("creates it over revision {there}")),
                Action::Replace { expected: Some(expected), .. } => (there != Some(*expected)).then(|| {
                    format!(
                        "was to replace {expected} and replaces {}",
                        there.map_or("nothing".to_owned(), |t| t.to_string())
                    )
                }),
                Action::Replace { expected: None, .. } => there.is_none().then(|| "replaces nothing".to_owned()),
                Action::Get | Action::List | Action::Delete { .. } => None,
            };
            if let Some(wrong) = wrong {
                self.violate(LINEARIZABLE, format!("revision {revision} of {} {wrong}", entry.key));
            }
        }
    }

    /// Every deletion was asked for, and every acknowledged one was done.
    fn deletions(&mut self) {
        let mut asked: BTreeMap<(&str, u64), bool> = BTreeMap::new();
        for operation in self.operations {
            let Action::Delete { expected: Some(expected) } = operation.action else { continue };
            let done = operation.outcome == Outcome::Deleted;
            if done || matches!(operation.outcome, Outcome::Unknown(_)) {
                *asked.entry((&operation.key, expected)).or_default() |= done;
            }
        }
        let mut violations = Vec::new();
        for ((key, expected), done) in &asked {
            let next = self.after(key, *expected);
            let sure = match next {
                Some((revision, _)) => self.is_covered(*expected, revision),
                None => self.is_covered_to_the_end(*expected),
            };
            if *done && sure && next.is_none_or(|(_, entry)| entry.value.is_some()) {
                let then = next.map_or("nothing".to_owned(), |(revision, _)| format!("revision {revision}"));
                violations.push((LOST, format!("{key} of revision {expected} was deleted, yet {then} follows it")));
            }
        }
        for (revision, entry) in self.log.iter().filter(|(_, entry)| entry.value.is_none()) {
            let Some((before, _)) = self.before(&entry.key, *revision) else { continue };
            if self.is_covered(before, *revision) && !asked.contains_key(&(entry.key.as_str(), before)) {
                violations.push((LINEARIZABLE, format!("nobody deleted {} at {before}: {revision}", entry.key)));
            }
        }
        violations.into_iter().for_each(|(rule, what)| self.violate(rule, what));
    }

    /// When the first of those began who may have made a deletion.
    fn first_to_delete(&self, revision: u64, entry: &Entry) -> Option<Moment> {
        let (before, _) = self.before(&entry.key, revision).filter(|(before, _)| self.is_covered(*before, revision))?;
        let is_one = |operation: &&Operation| {
            operation.key == entry.key
                && operation.action == Action::Delete { expected: Some(before) }
                && matches!(operation.outcome, Outcome::Deleted | Outcome::Unknown(_))
        };
        self.operations.iter().filter(is_one).map(|operation| operation.began).min()
    }

    /// A list is the state at its revision.
    fn lists(&mut self) {
        let mut violations = Vec::new();
        for operation in self.operations {
            let Outcome::Listed { revision, items } = &operation.outcome else { continue };
            for key in self.by_key.keys() {
                let latest = self.before(key, revision + 1);
                let listed = items.get(key).map(|(r, _)| *r);
                let expected = latest.filter(|(_, entry)| entry.value.is_some()).map(|(r, _)| r);
                // What is missing from the log would be newer than what is there.
                if listed != expected && self.is_covered(latest.map_or(0, |(r, _)| r), *revision) {
                    let show = |r: Option<u64>| r.map_or("no".to_owned(), |r| format!("revision {r} of"));
                    let what =
                        format!("the list at {revision} has {} {key} instead of {}", show(listed), show(expected));
                    violations.push(what);
                }
            }
        }
        violations.into_iter().for_each(|what| self.violate(LINEARIZABLE, what));
    }

    /// Gives moments to revisions.
    fn time(&mut self) -> Bounds {
        // What must be: (revision, moment, why).
        let (mut not_before, mut not_after) = (BTreeMap::new(), BTreeMap::new());
        let mut begin = |revision: u64, moment: Moment, why: String| {
            let bound = not_before.entry(revision).or_insert_with(|| (moment, why.clone()));
            if moment > bound.0 {
                *bound = (moment, why);
            }
        };
        let mut end = |revision: u64, moment: Moment, why: String| {
            let bound = not_after.entry(revision).or_insert_with(|| (moment, why.clone()));
            if moment < bound.0 {
                *bound = (moment, why);
            }
        };
        for event in self.stretches.iter().flat_map(|stretch| &stretch.events) {
            end(event.revision, event.seen, "an event".to_owned());
        }
        for (revision, entry) in &self.log {
            let author = entry.value.as_ref().and_then(|value| self.authors.get(value));
            if let Some(operation) = author.map(|author| &self.operations[*author]) {
                begin(*revision, operation.began, format!("the request of {}", show(entry)));
            }
            if entry.value.is_none()
                && let Some(began) = self.first_to_delete(*revision, entry)
            {
                begin(*revision, began, format!("the request of {}", show(entry)));
            }
        }
        for operation in self.operations {
            let key = &operation.key;
            match &operation.outcome {
                Outcome::Written(revision) => {
                    end(*revision, operation.ended, format!("the answer to a write of {key}"))
                }
                Outcome::Read((revision, _)) => {
                    end(*revision, operation.ended, format!("a read of {key}"));
                    if let Some((next, _)) = self.after(key, *revision) {
                        begin(next, operation.began, format!("a read of {key} that still answered {revision}"));
                    }
                }
                Outcome::Listed { revision, .. } => {
                    end(*revision, operation.ended, "a list".to_owned());
                    if let Some((next, _)) = self.log.range(revision + 1..).next() {
                        begin(*next, operation.began, format!("a list that was still at {revision}"));
                    }
                }
                Outcome::Deleted => {
                    let Action::Delete { expected: Some(expected) } = operation.action else { continue };
                    let next = self.after(key, expected).filter(|(_, entry)| entry.value.is_none());
                    if let Some((revision, _)) = next.filter(|(revision, _)| self.is_covered(expected, *revision)) {
                        end(revision, operation.ended, format!("the answer to a deletion of {key}"));
                    }
                }
                Outcome::Absent | Outcome::Exists | Outcome::Conflict | Outcome::Unknown(_) => {}
            }
        }
        let mut bounds = Bounds { earliest: BTreeMap::new(), latest: BTreeMap::new() };
        let revisions: BTreeSet<u64> = not_before.keys().chain(not_after.keys()).copied().collect();
        let mut latest: Option<(Moment, u64, &str)> = None;
        let mut ends = BTreeMap::new();
        for revision in revisions.iter().rev() {
            if let Some((moment, why)) = not_after.get(revision)
                && latest.is_none_or(|(m, ..)| *moment < m)
            {
                latest = Some((*moment, *revision, why));
            }
            if let Some(latest) = latest {
                bounds.latest.insert(*revision, latest.0);
                ends.insert(*revision, latest);
            }
        }
        let mut earliest: Option<(Moment, u64, &str)> = None;
        // One contradiction shows at many revisions.
        let (mut early_told, mut late_told) = (BTreeSet::new(), BTreeSet::new());
        let mut violations = Vec::new();
        for revision in &revisions {
            if let Some((moment, why)) = not_before.get(revision)
                && earliest.is_none_or(|(m, ..)| *moment > m)
            {
                earliest = Some((*moment, *revision, why));
            }
            let Some(early) = earliest else { continue };
            bounds.earliest.insert(*revision, early.0);
            if let Some(late) = ends.get(revision)
                && late.0 < early.0
                && early_told.insert(early.1)
                && late_told.insert(late.1)
            {
                violations.push(format!(
                    "revision {} was not there before {} µs ({}), yet revision {} was there at {} µs ({})",
                    early.1, early.0, early.2, late.1, late.0, late.2
                ));
            }
        }
        violations.into_iter().for_each(|what| self.violate(LINEARIZABLE, what));
        bounds
    }

    /// What was refused had a reason at some moment while it was asked for.
    fn refusals(&mut self, bounds: &Bounds) {
        let mut violations = Vec::new();
        for operation in self.operations {
            let (key, outcome) = (&operation.key, &operation.outcome);
            let surely_before = |revision| bounds.latest.get(&revision).is_some_and(|m| *m < operation.began);
            let surely_after = |revision| bounds.earliest.get(&revision).is_some_and(|m| *m > operation.ended);
            // Whether the key was what `wanted` says from a change before the operation to one behind it.
            let throughout = |first: u64, wanted: &dyn Fn(u64, &Entry) -> bool| {
                let revisions = &self.by_key[key];
                let others = revisions.iter().skip_while(|r| **r <= first);
                let end = others.copied().find(|r| !wanted(*r, &self.log[r]));
                match end {
                    Some(end) => surely_after(end) && self.is_covered(first, end),
                    None => self.is_covered_to_the_end(first),
                }
            };
            let starts = || {
                let revisions = self.by_key.get(key).into_iter().flatten().copied();
                revisions.filter(|revision| surely_before(*revision))
            };
            let wrong = match (outcome, &operation.action) {
                (Outcome::Absent, _) => starts()
                    .next_back()
                    .filter(|r| self.log[r].value.is_some())
                    .is_some_and(|r| throughout(r, &|_, entry| entry.value.is_some())),
                (Outcome::Exists, Action::Create { .. }) => match starts().next_back() {
                    Some(r) => self.log[&r].value.is_none() && throughout(r, &|_, entry| entry.value.is_none()),
                    None => match self.by_key.get(key).and_then(|revisions| revisions.first()) {
                        Some(first) => surely_after(*first) && self.is_covered(0, *first),
                        None => self.is_covered_to_the_end(0),
                    },
                },
                (
                    Outcome::Conflict,
                    Action::Replace { expected: Some(expected), .. } | Action::Delete { expected: Some(expected) },
                ) => {
                    self.log.get(expected).is_some_and(|entry| entry.key == *key)
                        && surely_before(*expected)
                        && throughout(*expected, &|revision, _| revision == *expected)
                }
                _ => false,
            };
            if wrong {
                let (began, ended) = (operation.began, operation.ended);
                let what =
                    format!("{:?} of {key} from {began} to {ended} µs was answered {outcome:?}", operation.action);
                violations.push(format!("{what} without a reason"));
            }
        }
        violations.into_iter().for_each(|what| self.violate(LINEARIZABLE, what));
    }
}

fn written(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Written(revision) => Some(*revision),
        _ => None,
    }
}

fn show(entry: &Entry) -> String {
    match &entry.value {
        Some(value) => format!("{}={value}", entry.key),
        None => format!("the deletion of {}", entry.key),
    }
}

/// The union of intervals, sorted.
fn union(mut intervals: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    intervals.sort_unstable();
    let mut union: Vec<(u64, u64)> = Vec::new();
    for (after, reached) in intervals {
        match union.last_mut() {
            Some(last) if after <= last.1 => last.1 = last.1.max(reached),
            _ => union.push((after, reached)),
        }
    }
    union
}

#[cfg(test)]
mod tests;
