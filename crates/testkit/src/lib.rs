//! Clusters for tests: machines in namespaces, images from Debian packages, and a registry on loopback.

pub mod host;
