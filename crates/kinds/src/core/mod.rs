//! Kinds of the core group.

pub mod binding;
pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod namespace;
pub mod node;
pub mod pod;
pub(crate) mod pod_default;
mod pod_table;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_update;
mod service_validation;
