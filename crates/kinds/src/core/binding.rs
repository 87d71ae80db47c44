//! Binding: the old form of `pods/binding`, posted to a namespace.
//!
//! Source: kubernetes `pkg/registry/core/pod/storage/storage.go`, `LegacyBindingREST`.

use crate::kind::{Answer, Kind};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Binding", "bindings").answered(Answer::Binding)
}
