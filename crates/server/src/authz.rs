//! Authorization: members of `system:masters`, then nodes, then roles.
//!
//! Nothing is ever denied outright: what nobody allows is refused, with the reasons of all who were asked.

pub mod node;
pub mod rbac;

use std::sync::Arc;

use store::Store;

use crate::authz::rbac::Rbac;
use crate::identity::{Authorizer, Decision, SYSTEM_MASTERS, User};
use crate::path::Attributes;

/// The cluster's authorizer.
pub struct ClusterAuthorizer {
    store: Arc<dyn Store>,
    rbac: Rbac,
}

impl ClusterAuthorizer {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, rbac: Rbac::default() }
    }

    /// The role authorizer, for reviews that list what a user may do.
    pub fn rbac(&self) -> &Rbac {
        &self.rbac
    }
}

impl Authorizer for ClusterAuthorizer {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.is_in(SYSTEM_MASTERS) {
            return Decision::Allow(String::new());
        }
        let snapshot = self.store.snapshot();
        let node_reason = match node::authorize(&snapshot, user, attributes) {
            Decision::NoOpinion(reason) => reason,
            decided => return decided,
        };
        match self.rbac.policy(&snapshot).authorize(user, attributes) {
            Decision::NoOpinion(reason) if node_reason.is_empty() => Decision::NoOpinion(reason),
            Decision::NoOpinion(reason) if reason.is_empty() => Decision::NoOpinion(node_reason),
            Decision::NoOpinion(reason) => Decision::NoOpinion(format!("{node_reason}, {reason}")),
            decided => decided,
        }
    }
}
