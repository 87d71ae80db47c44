//! Which commits touched what is watched: so that a watch is woken by its own changes alone, and knows what passed meanwhile without
//! reading it.
//!
//! Upstream keeps a watch cache for each resource for the same reason (apiserver `pkg/storage/cacher`). Here a topic is whatever
//! somebody watches, cut at its last slash: a resource, or one namespace of it.

use std::collections::{HashMap, VecDeque};

use tokio::sync::watch;

use crate::state::Commit;

/// The topics that somebody watches, by name.
#[derive(Debug, Default)]
pub(crate) struct Topics(HashMap<Box<str>, Topic>);

#[derive(Debug)]
pub(crate) struct Topic {
    /// What touched it after this revision is in `touched`.
    since: u64,
    /// Revisions of commits that history still holds, ascending.
    touched: VecDeque<u64>,
    wake: watch::Sender<()>,
    watches: usize,
}

impl Topic {
    /// The commits that touched it after `revision`, or `None` when only history can tell.
    pub fn touched_after(&self, revision: u64) -> Option<impl ExactSizeIterator<Item = u64>> {
        let start = self.touched.partition_point(|touched| *touched <= revision);
        (revision >= self.since).then(|| self.touched.range(start..).copied())
    }
}

impl Topics {
    /// Begins to follow the topic of a prefix, at `head`, or follows it once more.
    pub fn join(&mut self, prefix: &str, head: u64) -> watch::Receiver<()> {
        let new = || Topic { since: head, touched: VecDeque::new(), wake: watch::Sender::default(), watches: 0 };
        let topic = self.0.entry(name(prefix).into()).or_insert_with(new);
        topic.watches += 1;
        topic.wake.subscribe()
    }

    /// Ends what [`Topics::join`] has begun.
    pub fn leave(&mut self, prefix: &str) {
        if let Some(topic) = self.0.get_mut(name(prefix)) {
            topic.watches -= 1;
            if topic.watches == 0 {
                self.0.remove(name(prefix));
            }
        }
    }

    pub fn of(&self, prefix: &str) -> Option<&Topic> {
        self.0.get(name(prefix))
    }

    /// Notes commits that follow `head`. Returns whom to wake once they are visible.
    pub fn touch(&mut self, commits: &[Commit], head: u64) -> Vec<watch::Sender<()>> {
        let mut woken = Vec::new();
        for commit in commits {
            self.each(commit, |topic| {
                let last = topic.touched.back().copied();
                if last.is_none_or(|last| last <= head) {
                    woken.push(topic.wake.clone());
                }
                if last != Some(commit.revision) {
                    topic.touched.push_back(commit.revision);
                }
            });
        }
        woken
    }

    /// Forgets commits that were compacted away, oldest first.
    pub fn forget(&mut self, compacted: &[Commit]) {
        for commit in compacted {
            self.each(commit, |topic| {
                topic.since = topic.since.max(commit.revision);
                topic.touched.pop_front_if(|touched| *touched <= commit.revision);
            });
        }
    }

    fn each(&mut self, commit: &Commit, mut visit: impl FnMut(&mut Topic)) {
        for change in commit.changes.iter() {
            let key = change.key().as_str();
            for (slash, _) in key.match_indices('/') {
                if let Some(topic) = self.0.get_mut(&key[..=slash]) {
                    visit(topic);
                }
            }
        }
    }
}

/// Keys begin with a slash.
fn name(prefix: &str) -> &str {
    prefix.rfind('/').map_or("/", |slash| &prefix[..=slash])
}
