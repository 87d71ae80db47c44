//! The store's tests over both of its forms: contract, watch rules, crashes, faults, damage.

mod contract;
mod crash;
mod damage;
mod disk;
mod fault;
mod model;
mod sim;
mod watch;
