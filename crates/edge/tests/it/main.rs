//! The edge over real sockets on loopback, driven as main drives it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod application;
mod bed;
mod browser;
mod confined;
mod control;
mod dns;
mod failures;
mod flood;
mod ingress;
mod log;
mod smuggling;
mod tls;
