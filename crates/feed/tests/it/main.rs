//! What Ingresses and Services become, and that an edge serves it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod cluster;
mod names;
mod objects;
mod routes;
mod shell;
