//! Images: references, registries, pulling, the layers on disk, import of archives and garbage collection.
//!
//! Follows the OCI distribution and image specifications and, where those leave room, containerd. What comes from a
//! registry or an archive is hostile: digests are checked over raw bytes, configuration passes a typed allow-list
//! ([`config`]), and layers are unpacked only by a confined child ([`unpack`]).

pub mod access;
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

/// Runs blocking work beside the runtime. The work goes on when the caller is dropped; it is short or idempotent.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels blocking work; then nobody polls this.
            Err(_) => std::future::pending().await,
        },
    }
}
