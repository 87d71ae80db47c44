//! The images of one node and their layers on disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncRead;

use crate::config::ImageConfig;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::gc::{Disk, Policy};
use crate::pull::{Progress, PullError};
use crate::reference::Reference;
use crate::registries::Registries;
use crate::unpack::Unpacker;

/// One image that is complete on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration: the image ID of kubelet and CRI.
    pub id: Digest,
    /// Full names with tag, such as `docker.io/library/busybox:1.37`, sorted.
    pub repo_tags: Vec<String>,
    /// `name@digest` of the manifest or index pulled, sorted; imported images get that of their manifest.
    pub repo_digests: Vec<String>,
    /// Bytes of all its files on disk; layers shared with other images count in each.
    pub size: u64,
    pub config: ImageConfig,
    /// Directories for overlayfs's `lowerdir=`, in its order: the topmost layer first. Never empty.
    pub layers: Vec<PathBuf>,
    /// Never collected.
    pub pinned: bool,
}

/// The image store of one node. Clones are handles to the same store.
#[derive(Clone)]
pub struct ImageStore {}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
    #[error("image store {path:?} is in use by another process")]
    Locked { path: PathBuf },
    #[error("image store {path:?} has format {found}, this release reads {known}; its content is left as it is")]
    Format { path: PathBuf, found: String, known: u32 },
    #[error("image {0:?} is not on this node")]
    NoSuchImage(String),
}

/// Why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("not an OCI or docker image archive: {0}")]
    Archive(String),
    #[error("failed to extract layer {layer}: {message}")]
    Unpack { layer: Digest, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the store occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    pub disk: Disk,
}

impl ImageStore {
    /// Opens or makes the store in `dir`, discards what an unclean shutdown left half done and checks the rest.
    ///
    /// Layers whose marker is missing or does not match are deleted; the images that need them vanish from the list
    /// and are pulled again on use. Blocks: call it from a blocking context.
    pub fn open(_dir: &Path, _registries: Registries, _unpacker: Unpacker) -> Result<ImageStore, StoreError> {
        todo!()
    }

    /// Pulls an image, or what is missing of it, and gives it `reference` as a name.
    ///
    /// `credentials` are tried before those of `registries.yaml`, then none. Pulls of the same layer at the same time
    /// share one transfer. Cancel safe: a dropped pull leaves nothing but finished layers.
    pub async fn pull(
        &self,
        _reference: &Reference,
        _credentials: &[Credentials],
        _progress: &dyn Progress,
    ) -> Result<Arc<Image>, PullError> {
        todo!()
    }

    /// The image of this name as users write it, or of this id (`sha256:…` or 12 or more hex digits of it).
    pub fn get(&self, _name_or_id: &str) -> Option<Arc<Image>> {
        todo!()
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        todo!()
    }

    /// Takes the name away; the image itself with its last name, or at once when an id is given.
    ///
    /// Callers make sure that no container uses it. Layers that other images need stay.
    pub async fn remove(&self, _name_or_id: &str) -> Result<(), StoreError> {
        todo!()
    }

    /// Imports an OCI layout or docker archive (`podman save`, `docker save`), plain, gzip or zstd.
    pub async fn import(&self, _archive: impl AsyncRead + Send + Unpin) -> Result<Vec<Arc<Image>>, ImportError> {
        todo!()
    }

    /// Notes that a container was made from the image; garbage collection prefers images unused for longest.
    pub fn mark_used(&self, _id: &Digest) {
        todo!()
    }

    /// Keeps the image from collection, or no longer.
    pub async fn pin(&self, _id: &Digest, _pinned: bool) -> Result<(), StoreError> {
        todo!()
    }

    /// Deletes images by `policy`, never one whose id is in `in_use`, and returns those deleted.
    pub async fn collect(&self, _policy: &Policy, _in_use: &BTreeSet<Digest>) -> Result<Vec<Arc<Image>>, StoreError> {
        todo!()
    }

    pub fn usage(&self) -> Result<Usage, StoreError> {
        todo!()
    }
}
