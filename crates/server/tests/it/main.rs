//! The server over its real HTTP paths, and kubectl against it.

mod cluster;
mod kubectl;
mod verbs;
