//! The object model shared by every crate: identity, metadata, errors, selectors, quantities and patches.
//!
//! Pure values: no IO, no clock, no async runtime. Types follow `k8s.io/apimachinery`.

pub mod chain;
pub mod cidr;
pub mod field;
pub mod json;
pub mod key;
pub mod meta;
pub mod names;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod validation;
pub mod yaml;
