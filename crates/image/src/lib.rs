//! Images: references, registries, pulling, the layers on disk, import of archives and garbage collection.
//!
//! Follows the OCI distribution and image specifications and, where those leave room, containerd. What comes from a
//! registry or an archive is hostile: digests are checked over raw bytes, configuration passes a typed allow-list
//! ([`config`]), and layers are unpacked only by a confined child ([`unpack`]).

mod archive;
pub mod config;
pub mod credentials;
pub mod digest;
mod distribution;
#[doc(hidden)]
pub mod fuzz;
pub mod gc;
mod http;
mod layers;
mod manifest;
pub mod pull;
pub mod reference;
pub mod registries;
pub mod store;
pub mod unpack;
