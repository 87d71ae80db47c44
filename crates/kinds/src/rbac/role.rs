//! Role: what may be done in one namespace.
//!
//! Source: kubernetes `pkg/registry/rbac/role/strategy.go`.

use crate::kind::{Kind, Strategy};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()),
        create_on_update: true,
        ..Kind::namespaced("rbac.authorization.k8s.io", "v1", "Role", "roles")
    }
}
