//! Kinds of the core group.

pub mod binding;
pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod limit_range;
pub mod namespace;
pub mod node;
mod overlapping_paths;
pub mod pod;
pub(crate) mod pod_default;
pub mod pod_support;
mod pod_table;
pub mod pod_template;
pub(crate) mod pod_validation;
pub(crate) mod pod_warnings;
pub mod replication_controller;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_update;
pub(crate) mod service_validation;
