//! The server over its real HTTP paths, and kubectl against it.

#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect has failed")]

mod actions;
mod apply;
mod cluster;
mod deletion;
mod goldens;
mod kubectl;
mod local;
mod node;
mod openid;
mod verbs;
mod watches;
