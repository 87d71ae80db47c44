//! The binary itself: as a user meets it, on machines in namespaces.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod apply;
mod bad_input;
mod cluster;
mod commands;
mod pods;
mod show;
mod survival;
