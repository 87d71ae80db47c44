//! The binary itself: as a user meets it, on machines in namespaces.

mod cluster;
mod explore;
mod survival;
