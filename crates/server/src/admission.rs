//! The built-in admission plugins, in upstream's order.
//!
//! Source: kubernetes `pkg/kubeapiserver/options/plugins.go`, `AllOrderedPlugins`.

pub mod default_tolerations;
pub mod escalation;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod node_taint;
pub mod priority;
pub mod runtime_class;
pub mod service_account;

use std::sync::Arc;

use crate::admit::Chain;
use crate::authz::ClusterAuthorizer;
use crate::hooks::Rng;

/// All of them.
pub fn chain(authorizer: Arc<ClusterAuthorizer>, rng: Rng) -> Chain {
    Chain(vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount::new(rng)),
        Box::new(node_restriction::NodeRestriction),
        Box::new(node_taint::TaintNodesByCondition),
        Box::new(priority::Priority),
        Box::new(default_tolerations::DefaultTolerationSeconds),
        Box::new(runtime_class::RuntimeClass),
        Box::new(escalation::Escalation::new(authorizer)),
    ])
}
