//! Lease: who leads, or that a node is alive.
//!
//! Source: kubernetes `pkg/registry/coordination/lease/strategy.go`.

use api::field::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::place::Place;
use crate::table;
use crate::value::{remove, text};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().preparing(prepare).validating(validate),
        columns: vec![Column::name(), Column::text("Holder", "Who holds the lease."), Column::age()],
        row: Box::new(row),
        create_on_update: true,
        unconditional_update: false,
        ..Kind::namespaced("coordination.k8s.io", "v1", "Lease", "leases")
    }
}

/// Coordinated leader election is switched off in upstream.
fn prepare(lease: &mut Value, _old: Option<&Value>) {
    if let Some(spec) = lease.get_mut("spec") {
        remove(spec, "strategy");
        remove(spec, "preferredHolder");
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
    errors
}

fn row(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(lease)), json!(text(&lease["spec"]["holderIdentity"])), table::age(lease, now)]
}
