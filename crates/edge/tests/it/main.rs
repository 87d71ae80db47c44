//! The edge over real sockets on loopback, driven as main drives it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod application;
mod bed;
mod browser;
mod confined;
mod control;
mod dns;
mod failures;
mod ingress;
mod smuggling;
mod tls;
