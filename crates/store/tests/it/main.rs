//! The store's tests over both of its forms: contract, watch rules, crashes, faults, damage.

// All of this is test code, not only the functions marked so.
#![allow(clippy::unwrap_used)]

mod contract;
mod crash;
mod damage;
mod disk;
mod fault;
mod model;
mod sim;
mod watch;
