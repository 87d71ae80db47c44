//! Lease: who leads, or that a node is alive.
//!
//! Source: kubernetes `pkg/registry/coordination/lease/strategy.go`.

use api::field::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::table;
use crate::value::text;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().validating(validate),
        columns: vec![Column::name(), Column::text("Holder", "Who holds the lease."), Column::age()],
        row: Box::new(row),
        create_on_update: true,
        unconditional_update: false,
        ..Kind::namespaced("coordination.k8s.io", "v1", "Lease", "leases")
    }
}

fn validate(lease: &Value, _old: Option<&Value>) -> Vec<Error> {
    let spec = Place::root(lease).child("spec");
    let mut errors = Vec::new();
    let seconds = spec.child("leaseDurationSeconds");
    if seconds.is_set() && seconds.number() <= 0 {
        errors.push(seconds.invalid("must be greater than 0"));
    }
    spec.child("leaseTransitions").not_negative(&mut errors);
    for field in ["strategy", "preferredHolder"] {
        let place = spec.child(field);
        if place.is_set() {
            errors.push(place.forbidden("not supported yet by coracle: there is no coordinated leader election"));
        }
    }
    errors
}

fn row(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(lease)), json!(text(&lease["spec"]["holderIdentity"])), table::age(lease, now)]
}
