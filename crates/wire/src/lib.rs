//! Protocols as values and state machines without IO.

pub mod dns;
pub mod edge;
pub mod spdy;
pub mod tls;
