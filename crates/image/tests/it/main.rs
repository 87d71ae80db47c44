//! Images end to end: a registry on loopback, the confined child, layers on a real file system. Needs root.

#![allow(clippy::unwrap_used)]

mod fixture;
mod hostile;
mod importing;
mod pulling;
mod running;
mod storing;
mod tls;
