//! Pulling: how a pull ends badly, and how far it is.

use crate::digest::Digest;

/// Why an image could not be pulled. `Display` is the whole message, in containerd's words.
#[derive(Debug, thiserror::Error)]
#[error("failed to pull and unpack image \"{image}\": {cause}")]
pub struct PullError {
    /// In full form, such as `docker.io/library/busybox:1.37`.
    pub image: String,
    pub cause: PullCause,
}

#[derive(Debug, thiserror::Error)]
pub enum PullCause {
    #[error("failed to resolve reference \"{image}\": {image}: not found")]
    NotFound { image: String },
    #[error("failed to resolve reference \"{image}\": {message}")]
    Unauthorized { image: String, message: String },
    #[error("failed to resolve reference \"{image}\": {message}")]
    RateLimited { image: String, message: String, retry_after: Option<std::time::Duration> },
    /// No endpoint answered, or one answered with a server error.
    #[error("failed to resolve reference \"{image}\": {message}")]
    Unreachable { image: String, message: String },
    #[error("registry {registry} is blocked in registries.yaml")]
    Blocked { registry: String },
    /// Names under `localhost/` never leave the node.
    #[error(
        "{image} is not on this node, and names under localhost/ are never pulled: import it with `coracle image import`"
    )]
    LocalOnly { image: String },
    #[error("no match for platform in manifest: not found (wanted {wanted}, the image offers {offered})")]
    NoPlatform { wanted: String, offered: String },
    /// Content that is not what its descriptor or the specification says.
    #[error("{message}")]
    Invalid { message: String },
    #[error("failed to extract layer {layer}: {message}")]
    Unpack { layer: Digest, message: String },
    #[error("{context}: {source}")]
    Disk { context: String, source: std::io::Error },
}

impl PullError {
    /// The gRPC code's name that a CRI runtime would answer with, such as `NotFound`.
    pub fn code(&self) -> &'static str {
        match &self.cause {
            PullCause::NotFound { .. } | PullCause::NoPlatform { .. } | PullCause::LocalOnly { .. } => "NotFound",
            PullCause::Unauthorized { .. } => "PermissionDenied",
            PullCause::RateLimited { .. } => "ResourceExhausted",
            PullCause::Unreachable { .. } => "Unavailable",
            PullCause::Blocked { .. } => "FailedPrecondition",
            PullCause::Invalid { .. } | PullCause::Unpack { .. } | PullCause::Disk { .. } => "Unknown",
        }
    }
}

/// Told as a pull advances, from many tasks at once.
pub trait Progress: Send + Sync {
    fn report(&self, event: ProgressEvent<'_>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressEvent<'a> {
    /// The manifest is known. `total_bytes` is what must be fetched, compressed, without the layers already here.
    Resolved {
        layers: usize,
        total_bytes: u64,
    },
    /// `received` of `size` compressed bytes of one layer have arrived.
    Layer {
        digest: &'a Digest,
        received: u64,
        size: u64,
    },
    LayerDone {
        digest: &'a Digest,
    },
}

/// For callers that do not care how far it is.
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _event: ProgressEvent<'_>) {}
}
