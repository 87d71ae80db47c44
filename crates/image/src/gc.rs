//! Which images to delete when the disk fills up; pure.
//!
//! Source: kubernetes `pkg/kubelet/images/image_gc_manager.go`.

use std::time::{Duration, SystemTime};

use crate::digest::Digest;

/// When to delete unused images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Percent of the file system in use from which collection starts; 100 turns it off.
    pub high_threshold_percent: u8,
    /// Percent of the file system that collection tries to get down to.
    pub low_threshold_percent: u8,
    /// An image detected less than this long ago is kept.
    pub min_age: Duration,
    /// An image unused for longer is deleted whatever the disk says.
    pub max_age: Option<Duration>,
}

impl Default for Policy {
    /// The kubelet's defaults: 85 %, 80 %, 2 minutes, no maximum.
    fn default() -> Policy {
        Policy {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            min_age: Duration::from_secs(120),
            max_age: None,
        }
    }
}

/// The file system that holds the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
}

/// What the decision knows of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: Digest,
    pub size: u64,
    pub pinned: bool,
    pub in_use: bool,
    pub first_seen: SystemTime,
    pub last_used: SystemTime,
}
