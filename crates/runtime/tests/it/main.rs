//! The runtime as root on this machine: pods, containers and their shims, for real.

mod bed;
mod lifecycle;
