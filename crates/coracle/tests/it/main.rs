//! The binary itself: as a user meets it, on machines in namespaces.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod apply;
mod bad_input;
mod cluster;
mod commands;
#[cfg(target_arch = "x86_64")]
mod guest;
mod pods;
mod port_forward;
mod proxy;
mod show;
mod survival;
mod torture;
