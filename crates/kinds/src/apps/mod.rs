//! Kinds of the apps group.

pub mod deployment;
mod deployment_validation;
pub mod replica_set;
pub(crate) mod template;
