//! Protocols as values and state machines without IO.

pub mod edge;
