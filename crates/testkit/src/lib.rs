//! Clusters for tests: machines in namespaces, images from Debian packages, and a registry on loopback.

pub mod conformance;
pub mod debian;
pub mod guest;
pub mod host;
pub mod images;
pub mod interrupt;
pub mod kubectl;
pub mod load;
pub mod netns;
pub mod oracle;
pub mod rack;
pub mod registry;
pub mod stand_ins;
pub mod survival;
pub mod torture;
pub mod upstream;
pub mod web;
