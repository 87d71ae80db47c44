//! Compiles Ingresses, Services and EndpointSlices into the edge's table, and keeps the edge at it.

pub mod adopt;
mod annotations;
pub mod compile;
mod link;
mod names;
mod routes;
pub mod shell;
mod values;
