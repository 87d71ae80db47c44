//! Lease: who leads, or that a node is alive.
//!
//! Source: kubernetes `pkg/registry/coordination/lease/strategy.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::table;
use crate::value::text;

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()),
        columns: vec![Column::name(), Column::text("Holder", "Who holds the lease."), Column::age()],
        row: Box::new(row),
        create_on_update: true,
        unconditional_update: false,
        ..Kind::namespaced("coordination.k8s.io", "v1", "Lease", "leases")
    }
}

fn row(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(table::name(lease)), json!(text(&lease["spec"]["holderIdentity"])), table::age(lease, now)]
}
