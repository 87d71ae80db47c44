//! Where a durable store is kept, and why it may not be opened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::record::BadRecord;
use crate::seal::{KeyId, Keyring};
use crate::state::Limits;

/// Where and how a store is kept.
#[derive(Debug)]
pub struct Options {
    /// The store's own directory, created if it is missing.
    pub dir: PathBuf,
    /// The keys that Secrets are sealed with; their file belongs outside `dir`.
    pub keys: Arc<Keyring>,
    pub limits: Limits,
    /// The size that a segment of the log is preallocated with.
    pub segment_bytes: u64,
    /// How much log there is before a checkpoint replaces it. A larger store waits for a log of its own size.
    pub checkpoint_bytes: u64,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>, keys: Keyring) -> Self {
        Self {
            dir: dir.into(),
            keys: Arc::new(keys),
            limits: Limits::default(),
            segment_bytes: 4 << 20,
            checkpoint_bytes: 8 << 20,
        }
    }
}

/// Why a store was not opened. Nothing on disk was changed, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by process {holder}: stop it, or choose another data directory", dir.display())]
    Locked { dir: PathBuf, holder: String },
    #[error(
        "{} has format version {found} and this build knows only {known}: start the release that wrote it", path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{} is sealed with key {key}, which the key file does not hold: put that key's line back", path.display())]
    Key { path: PathBuf, key: KeyId },
    #[error("{} is damaged at byte {offset}: {what}; {repair}", path.display())]
    Damaged { path: PathBuf, offset: u64, what: &'static str, repair: String },
    /// A store that was only half created or mended is completed by the next attempt.
    #[error("could not {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl OpenError {
    /// The way out of damage that nothing on this disk can mend.
    pub(crate) const BACKUP: &str = "restore the directory from a backup";

    pub(crate) fn damaged(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::damaged_but(path, offset, what, Self::BACKUP)
    }

    pub(crate) fn damaged_but(path: &Path, offset: u64, what: &'static str, repair: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what, repair: repair.into() }
    }

    /// An intact frame whose payload was not taken.
    pub(crate) fn record(path: &Path, offset: u64, bad: BadRecord, repair: impl Into<String>) -> Self {
        match bad {
            BadRecord::UnknownKey(key) => Self::Key { path: path.to_owned(), key },
            BadRecord::Damaged(what) => Self::damaged_but(path, offset, what, repair),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
