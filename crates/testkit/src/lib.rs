//! Clusters for tests: machines in namespaces, images from Debian packages, and a registry on loopback.

pub mod debian;
pub mod host;
pub mod images;
pub mod registry;
pub mod stand_ins;
