//! The node for real: an API server in process, and pods as processes of this machine.

// A test's panic is its report.
#![allow(clippy::unwrap_used)]

mod bed;
mod changes;
mod configuration;
mod endpoint;
mod images;
mod kubectl;
mod pods;
mod port_forward;
mod probes;
mod spdy;
mod survival;
