//! ClusterRole: what may be done in every namespace, or outside them.
//!
//! Source: kubernetes `pkg/registry/rbac/clusterrole/strategy.go`.

use crate::kind::{Kind, Strategy};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(|_| ()),
        create_on_update: true,
        ..Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles")
    }
}
