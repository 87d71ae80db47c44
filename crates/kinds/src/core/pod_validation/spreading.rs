//! Where a pod may run by where other pods run: affinity to them, and an even spread.

use std::collections::BTreeSet;

use api::field::{Error, Path};
use api::{names, selector};

use crate::place::Place;

pub(super) fn affinity(affinity: &Place<'_>, errors: &mut Vec<Error>) {
    for kind in ["podAffinity", "podAntiAffinity"].map(|kind| affinity.child(kind)) {
        for required in kind.child("requiredDuringSchedulingIgnoredDuringExecution").items() {
            term(&required, errors);
        }
        for preferred in kind.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
            let weight = preferred.child("weight");
            if !(1..=100).contains(&weight.number()) {
                errors.push(Error::invalid(&weight.path, weight.number(), "must be in the range 1-100"));
            }
            term(&preferred.child("podAffinityTerm"), errors);
        }
    }
}

fn term(term: &Place<'_>, errors: &mut Vec<Error>) {
    for selector in ["labelSelector", "namespaceSelector"].map(|field| term.child(field)) {
        errors.extend(selector::validate_label_selector(selector.value, &selector.path));
    }
    for name in term.child("namespaces").items() {
        let at = Place::new(name.value, term.path.child("namespace"));
        at.keep(names::is_dns1123_label, errors);
    }
    label_keys(term, errors);
    let key = term.child("topologyKey");
    if key.is_empty() {
        errors.push(key.required("can not be empty"));
    }
    errors.extend(selector::validate_label_name(key.text(), &key.path));
}

/// Source: `ValidateMatchLabelKeysAndMismatchLabelKeys`.
fn label_keys(of: &Place<'_>, errors: &mut Vec<Error>) {
    let (selector, matching, mismatching) =
        (of.child("labelSelector"), of.child("matchLabelKeys"), of.child("mismatchLabelKeys"));
    for keys in [&matching, &mismatching] {
        if !keys.is_empty() && !selector.is_set() {
            errors.push(keys.forbidden("must not be specified when labelSelector is not set"));
            continue;
        }
        for key in keys.items() {
            errors.extend(selector::validate_label_name(key.text(), &key.path));
        }
    }
    // The server has added a requirement for each key already: one more is the user's.
    let mut selected: BTreeSet<&str> = selector.child("matchLabels").entries().map(|(key, _)| key).collect();
    for expression in selector.child("matchExpressions").items() {
        let key = expression.child("key").text();
        let at = matching.items().position(|matching| matching.is(key));
        if let Some(at) = at.filter(|_| selected.contains(key)) {
            errors.push(both(&of.path.index(at), key, "labelSelector"));
        }
        selected.insert(key);
    }
    for key in matching.items().filter(|key| mismatching.items().any(|other| other.is(key.text()))) {
        errors.push(both(&key.path, key.text(), "mismatchLabelKeys"));
    }
}

fn both(path: &Path, key: &str, other: &str) -> Error {
    Error::invalid(path, key, format!("exists in both matchLabelKeys and {other}"))
}

pub(super) fn constraints(constraints: &Place<'_>, errors: &mut Vec<Error>) {
    const POSITIVE: &str = "must be greater than zero";
    let all: Vec<Place<'_>> = constraints.items().collect();
    for (at, constraint) in all.iter().enumerate() {
        let place = |field: &str| constraint.child(field);
        let (skew, key, action) = (place("maxSkew"), place("topologyKey"), place("whenUnsatisfiable"));
        if skew.number() <= 0 {
            errors.push(Error::invalid(&skew.path, skew.number(), POSITIVE));
        }
        if key.is_empty() {
            errors.push(key.required("can not be empty"));
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.text()) {
            errors.push(Error::not_supported(&action.path, action.text(), &["DoNotSchedule", "ScheduleAnyway"]));
        }
        let same = |other: &Place<'_>| {
            other.child("topologyKey").is(key.text()) && other.child("whenUnsatisfiable").is(action.text())
        };
        if all[at + 1..].iter().any(same) {
            let path = constraint.path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(Error::duplicate(&path, format!("{{{}, {}}}", key.text(), action.text())));
        }
        let domains = place("minDomains");
        if domains.is_set() && domains.number() <= 0 {
            errors.push(domains.invalid(POSITIVE));
        }
        if domains.is_set() && !action.is("DoNotSchedule") {
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.text());
            errors.push(domains.invalid(detail));
        }
        place("nodeAffinityPolicy").if_set_one_of(&["Honor", "Ignore"], errors);
        place("nodeTaintsPolicy").if_set_one_of(&["Honor", "Ignore"], errors);
        label_keys(constraint, errors);
        let selector = place("labelSelector");
        errors.extend(selector::validate_label_selector(selector.value, &selector.path));
    }
}
