//! Kinds of the node.k8s.io group.

pub mod runtime_class;
