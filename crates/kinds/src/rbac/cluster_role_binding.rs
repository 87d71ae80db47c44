//! ClusterRoleBinding: who has a cluster role everywhere.
//!
//! Source: kubernetes `pkg/registry/rbac/clusterrolebinding/strategy.go`.

use api::validation;

use super::role_binding::{columns, fill, row, validate};
use crate::kind::{Kind, Strategy};

pub fn kind() -> Kind {
    Kind {
        strategy: Strategy::none().defaulting(fill).validating(|binding, old| validate(binding, old, false)),
        columns: columns(),
        row: Box::new(row),
        name: validation::name_is_path_segment,
        create_on_update: true,
        ..Kind::cluster("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings")
    }
}
