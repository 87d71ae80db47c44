//! Where a pod may run: affinity to nodes, tolerations, scheduling gates.

use std::collections::BTreeSet;

use api::field::Error;
use api::{names, selector};

use crate::place::Place;

pub(super) fn affinity(affinity: &Place<'_>, errors: &mut Vec<Error>) {
    let node = affinity.child("nodeAffinity");
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        let terms = required.child("nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(terms.required("must have at least one node selector term"));
        }
        for one in terms.items() {
            term(&one, true, errors);
        }
    }
    for preferred in node.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
        let weight = preferred.child("weight");
        if !(1..=100).contains(&weight.number()) {
            errors.push(Error::invalid(&weight.path, weight.number(), "must be in the range 1-100"));
        }
        term(&preferred.child("preference"), false, errors);
    }
}

/// Upstream checks the values only of required terms.
fn term(term: &Place<'_>, check_values: bool, errors: &mut Vec<Error>) {
    for requirement in term.child("matchExpressions").items() {
        expression(&requirement, check_values, errors);
    }
    for requirement in term.child("matchFields").items() {
        field(&requirement, errors);
    }
}

fn expression(requirement: &Place<'_>, check_values: bool, errors: &mut Vec<Error>) {
    let (key, operator, values) =
        (requirement.child("key"), requirement.child("operator"), requirement.child("values"));
    match operator.text() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => errors.push(Error::invalid(&operator.path, operator.text(), "not a valid selector operator")),
    }
    errors.extend(selector::validate_label_name(key.text(), &key.path));
    if check_values {
        for value in values.items() {
            value.keep(names::is_label_value, errors);
        }
    }
}

fn field(requirement: &Place<'_>, errors: &mut Vec<Error>) {
    let (key, operator, values) =
        (requirement.child("key"), requirement.child("operator"), requirement.child("values"));
    match operator.text() {
        "In" | "NotIn" if values.len() != 1 => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(values.required(detail));
        }
        "In" | "NotIn" => {}
        _ => errors.push(Error::invalid(&operator.path, operator.text(), "not a valid selector operator")),
    }
    if key.is("metadata.name") {
        for value in values.items() {
            value.keep(names::is_dns1123_subdomain, errors);
        }
    } else {
        errors.push(Error::invalid(&key.path, key.text(), "not a valid field selector key"));
    }
}

pub fn tolerations(tolerations: &Place<'_>, errors: &mut Vec<Error>) {
    for toleration in tolerations.items() {
        let place = |field: &str| toleration.child(field);
        let (key, operator, value, effect) = (place("key"), place("operator"), place("value"), place("effect"));
        if !key.is_empty() {
            errors.extend(selector::validate_label_name(key.text(), &key.path));
        } else if !operator.is("Exists") {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&operator.path, operator.text(), detail));
        }
        if place("tolerationSeconds").is_set() && !effect.is("NoExecute") {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&effect.path, effect.text(), detail));
        }
        match operator.text() {
            "Equal" | "" => {
                let messages = names::is_label_value(value.text());
                if !messages.is_empty() {
                    errors.push(Error::invalid(&operator.path, value.text(), messages.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&operator.path, value.text(), detail));
            }
            "Exists" => {}
            // Behind a gate of upstream's, which its message names all the same.
            "Lt" | "Gt" => errors.push(operator.not_supported(&["Equal", "Exists", "Lt", "Gt"])),
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            effect.if_set_one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
    }
}

pub(super) fn gates(gates: &Place<'_>, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for gate in gates.items() {
        let name = gate.child("name").text();
        let at = Place::new(gate.child("name").value, gate.path.clone());
        at.keep(names::is_qualified_name, errors);
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at.path, name));
        }
    }
}
