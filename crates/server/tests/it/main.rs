//! The server over its real HTTP paths, and kubectl against it.

mod actions;
mod cluster;
mod deletion;
mod kubectl;
mod local;
mod node;
mod verbs;
mod watches;
