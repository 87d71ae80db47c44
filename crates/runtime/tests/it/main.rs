//! The runtime as root on this machine: pods, containers and their shims, for real.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bed;
mod confined;
mod crash;
mod lifecycle;
mod limits;
mod logs;
mod namespaces;
mod security;
mod streams;
mod volumes;
