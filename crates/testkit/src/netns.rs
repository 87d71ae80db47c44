//! Work in other network namespaces, on threads of their own: sockets stay in the namespace that they were made in.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the namespace that `path` names, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` returns.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let netns = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    std::thread::scope(|scope| {
        let enter = || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("could not enter {}", path.display()))?;
            work()
        };
        scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
