//! Bugs on purpose, to prove that `cargo xtask torture` finds bugs.
//!
//! Only the feature `planted` of the crates that have them compiles them in, and only the one that [`load`] was told of is there
//! at run time. Each place is one statement behind `#[cfg(feature = "planted")]`.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the bugs: a variant, its name on the command line, and what goes wrong.
macro_rules! bugs {
    ($($variant:ident $name:literal $what:literal)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $(#[doc = $what] $variant),* }

        impl Bug {
            pub const ALL: &[Bug] = &[$(Bug::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What goes wrong.
            pub fn what(self) -> &'static str {
                match self { $(Self::$variant => $what),* }
            }
        }
    };
}

bugs! {
    // store
    AckBeforeSync "ack-before-sync" "writes are answered before they are synced"
    LostWrite "lost-write" "one write in ten is not read back after a restart"
    RevisionAgain "revision-again" "one revision in fifty is given twice"
    DeleteNotApplied "delete-not-applied" "one deletion in ten is answered and not done"
    WatchDropsEvent "watch-drops-event" "watches leave out one event in forty"
    WatchDoublesEvent "watch-doubles-event" "watches tell one event in forty twice"
    // server
    StaleGet "stale-get" "one read in ten is of an earlier revision"
    NoConflictCheck "no-conflict-check" "one update in four ignores the resourceVersion that it expects"
    LeakedDescriptor "leaked-descriptor" "one request in ten leaves a descriptor open"
    // node
    RestartOnAdoption "restart-on-adoption" "the next main starts adopted pods anew"
    LeakedMount "leaked-mount" "volumes of pods that are gone stay mounted"
    LeaseNotRenewed "lease-not-renewed" "the node's lease is not renewed"
    // runtime
    ExitCodeLost "exit-code-lost" "containers end with 0, whatever they ended with"
    LogLineLost "log-line-lost" "one chunk of a log in fifty is not written"
    LeakedCgroup "leaked-cgroup" "cgroups of pods that are gone stay"
    LeakedNetns "leaked-netns" "main keeps the network namespaces of pods that are gone"
    ShimZombie "shim-zombie" "shims that ended are not waited for"
    // net
    LeakedElement "leaked-nft-element" "elements of services that are gone stay in the kernel's sets"
    // edge, coracle
    EdgeDropsConnections "edge-drops-connections" "the edge drops its connections at every fifth table"
    EdgeNotReplaced "edge-not-replaced" "an edge that ended is not replaced"
}

static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();

/// Reads which bug this process is to have; without the file it has none. The first call counts.
pub fn load(file: &Path) {
    let name = std::fs::read_to_string(file).unwrap_or_default();
    PLANTED.get_or_init(|| Bug::ALL.iter().copied().find(|bug| bug.name() == name.trim()));
}

/// Whether this process has the bug.
pub fn on(bug: Bug) -> bool {
    PLANTED.get().is_some_and(|planted| *planted == Some(bug))
}

/// Whether this process has the bug and this is the `n`th time that it is asked, or the 2 `n`th, and so on.
pub fn every(bug: Bug, n: u64) -> bool {
    static TIMES: AtomicU64 = AtomicU64::new(0);
    on(bug) && TIMES.fetch_add(1, Ordering::Relaxed) % n == n - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        assert_eq!(names.len(), 20);
    }

    #[test]
    fn without_a_file_there_is_no_bug() {
        load(Path::new("/nonexistent"));
        assert!(!Bug::ALL.iter().any(|bug| on(*bug) || every(*bug, 1)));
    }
}
