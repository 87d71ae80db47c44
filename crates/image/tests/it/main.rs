//! Images end to end: a registry on loopback, the confined child, layers on a real file system. Needs root.

mod fixture;
mod hostile;
mod importing;
mod pulling;
mod storing;
