//! Every call that changes the disk is a crash point, with every way in which unsynced calls can be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::{Error, Op, Store};

use crate::model::{Contents, History, Script, contents, delivered, draft, key, open_sim, put, run};
use crate::sim::{Crash, Event, Image, Random, SimVfs};

/// A run of the store, and what may be asked of any crash in it.
struct Scenario {
    disk: SimVfs,
    history: History,
    states: BTreeMap<u64, Contents>,
    /// Lazy commits that a restart within the run has lost.
    lost: BTreeSet<u64>,
}

/// What had been answered at a crash point.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    /// The last commit that must be there.
    durable: u64,
    /// The last revision that anybody may have seen.
    issued: u64,
}

impl Scenario {
    fn new(disk: SimVfs, history: History, lost: BTreeSet<u64>) -> Self {
        let states = history.states();
        Self { disk, history, states, lost }
    }

    fn answered(&self, events: &[Event]) -> Answered {
        let mut answered = Answered { durable: 1, issued: 1 };
        for event in events {
            if let Event::Note(revision) = event {
                answered.issued = answered.issued.max(*revision);
                if self.history.commits.get(revision).is_some_and(|commit| !commit.lazy) {
                    answered.durable = answered.durable.max(*revision);
                }
            }
        }
        answered
    }

    /// Opens what a crash has left and checks all promises.
    async fn check(&self, image: Image, answered: Answered, place: &str) -> SimVfs {
        let disk = SimVfs::new(image);
        let store = open_sim(&disk).unwrap_or_else(|error| panic!("{place}: {error}"));
        let snapshot = store.snapshot();
        let found = contents(&snapshot);
        // More than one, if what was written was deleted again.
        let states = self.states.range(answered.durable..).filter(|(_, contents)| **contents == found);
        let kept: Vec<_> = states.map(|(revision, _)| *revision).collect();
        assert!(!kept.is_empty(), "{place}: no state at or after {} has {:?}", answered.durable, found.keys());
        assert!(snapshot.revision() >= answered.issued, "{place}: revision {} was seen", answered.issued);
        self.check_watches(&*store, &kept, answered, place).await;

        let new = store.txn(vec![], vec![put("/core/pods/default/new", "1")]).await.unwrap();
        assert!(new.revision > answered.issued, "{place}: revision {} was issued again", new.revision);
        drop(store);
        disk
    }

    /// A watch from before the crash goes on without a gap or is told that it cannot.
    async fn check_watches(&self, store: &dyn Store, kept: &[u64], answered: Answered, place: &str) {
        let known = self.states.range(..=answered.issued).rev().take(6).map(|(revision, _)| *revision);
        for lost in self.lost.iter().filter(|lost| **lost <= answered.issued) {
            assert!(matches!(store.watch("", *lost), Err(Error::Compacted { .. })), "{place}: {lost} was lost");
        }
        for after in known {
            match store.watch("", after) {
                Err(Error::Compacted { .. }) => {}
                Err(error) => panic!("{place}: watch after {after}: {error}"),
                Ok(mut cursor) => {
                    assert!(kept.iter().any(|kept| after <= *kept), "{place}: {after} was lost");
                    let mut seen = Vec::new();
                    while cursor.revision() < store.snapshot().revision() {
                        seen.extend(cursor.next().await.unwrap());
                    }
                    let seen = delivered(&seen);
                    let fits = |kept: &u64| self.history.expected("", after, *kept) == seen;
                    assert!(kept.iter().any(fits), "{place}: a watch after {after} got {seen:?}");
                }
            }
        }
    }

    async fn enumerate(&self, seed: u64) -> usize {
        let events = self.disk.events();
        let (mut random, mut states) = (Random::new(seed), 0);
        for point in 0..=events.len() {
            let answered = self.answered(&events[..point]);
            for (crash, times) in Crash::ALL {
                for time in 0..times {
                    let place = format!("seed {seed}, {crash:?} {time} after event {point} of {}", events.len());
                    let image = self.disk.crash(point, crash, &mut random);
                    let reopened = self.check(image, answered, &place).await;
                    states += 1;
                    if time == 0 && point % 3 == 0 {
                        // The next crash comes while the first is being mended.
                        let again = random.below(reopened.events().len() + 1);
                        let image = reopened.crash(again, crash, &mut random);
                        self.check_again(image, answered, &format!("{place}, again after {again}"));
                        states += 1;
                    }
                }
            }
        }
        states
    }

    fn check_again(&self, image: Image, answered: Answered, place: &str) {
        let store = open_sim(&SimVfs::new(image)).unwrap_or_else(|error| panic!("{place}: {error}"));
        let mut found = contents(&store.snapshot());
        found.remove("/core/pods/default/new");
        let kept = self.states.range(answered.durable..).any(|(_, contents)| *contents == found);
        assert!(kept, "{place}: an acknowledged write is missing");
        assert!(store.snapshot().revision() >= answered.issued, "{place}");
    }
}

async fn sequential(seed: u64, n: usize) -> Scenario {
    let (disk, mut history, mut script) = (SimVfs::default(), History::default(), Script::new(seed));
    let store = open_sim(&disk).unwrap();
    run(&*store, &mut script, n, &mut history, |revision| disk.note(revision)).await;
    drop(store);
    // A restart in the middle, clean or not, so that crash points lie behind it too.
    let store = open_sim(&disk).unwrap();
    let (found, states) = (contents(&store.snapshot()), history.states());
    let (kept, _) = states.iter().rfind(|(_, contents)| **contents == found).expect("one of them is there");
    let lost: BTreeSet<_> = history.commits.split_off(&(kept + 1)).into_keys().collect();
    run(&*store, &mut script, n / 2, &mut history, |revision| disk.note(revision)).await;
    store.close().await.unwrap();
    let store = open_sim(&disk).unwrap();
    run(&*store, &mut script, n / 2, &mut history, |revision| disk.note(revision)).await;
    // Not closed: what is still in memory at the end is lost to every crash point, too.
    drop(store);
    Scenario::new(disk, history, lost)
}

/// Several writers at once, so that frames hold groups.
async fn concurrent(seed: u64, n: usize) -> Scenario {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (disk, store) = (disk.clone(), store.clone());
        writers.spawn(async move {
            let (mut script, mut done) = (Script::new(seed * 10 + writer), Vec::new());
            for _ in 0..n {
                let (compares, ops, lazy) = script.next();
                if let Ok(committed) = store.txn(compares, ops.clone()).await {
                    let mut single = History::default();
                    if let Some(revision) = single.record(&ops, &committed, lazy) {
                        done.push((revision, single.commits.remove(&revision).unwrap()));
                        disk.note(revision);
                    }
                }
            }
            done
        });
    }
    let commits = writers.join_all().await.into_iter().flatten().collect();
    drop(store);
    Scenario::new(disk, History { commits }, BTreeSet::new())
}

#[tokio::test]
async fn no_crash_loses_an_acknowledged_write() {
    let mut states = 0;
    for seed in [1, 2] {
        states += sequential(seed, 40).await.enumerate(seed).await;
    }
    println!("{states} crash states of one writer");
}

#[tokio::test]
async fn no_crash_loses_a_write_of_a_group() {
    let states = concurrent(3, 20).await.enumerate(3).await;
    println!("{states} crash states of four writers");
}

#[tokio::test]
async fn a_clean_restart_keeps_revision_history_and_lazy_writes() {
    let (disk, mut history) = (SimVfs::default(), History::default());
    let store = open_sim(&disk).unwrap();
    run(&*store, &mut Script::new(5), 6, &mut history, |_| {}).await;
    let lease = "/coordination.k8s.io/leases/nodes/a";
    store.txn(vec![], vec![Op::PutLazily(draft(lease, "last"))]).await.unwrap();
    let before = store.snapshot();
    store.close().await.unwrap();
    assert!(store.is_closed());
    assert!(matches!(store.txn(vec![], vec![put("/core/pods/default/a", "1")]).await, Err(Error::Closed)));

    let store = open_sim(&disk).unwrap();
    assert_eq!((store.snapshot().revision(), contents(&store.snapshot())), (before.revision(), contents(&before)));
    let mut watch = store.watch("", 1).unwrap();
    assert!(!watch.next().await.unwrap().is_empty());
    assert_eq!(watch.revision(), before.revision());
}

#[tokio::test]
async fn renewals_wait_in_memory_and_a_crash_issues_no_revision_twice() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let (lease, pod) = ("/coordination.k8s.io/leases/nodes/a", "/core/pods/default/a");
    let durable = store.txn(vec![], vec![put(lease, "0"), put(pod, "1")]).await.unwrap().revision;
    let events = disk.events().len();
    let mut issued = durable;
    for n in 1..=50 {
        issued = store.txn(vec![], vec![Op::PutLazily(draft(lease, &n.to_string()))]).await.unwrap().revision;
    }
    assert_eq!(disk.events().len(), events, "a renewal touched the disk");

    let crashed = SimVfs::new(disk.image());
    let again = open_sim(&crashed).unwrap();
    assert_eq!(again.snapshot().get(&key(lease)).unwrap().value()["value"], "0");
    for lost in durable + 1..=issued {
        assert!(matches!(again.watch("", lost), Err(Error::Compacted { requested, .. }) if requested == lost));
        assert!(matches!(again.snapshot_at(lost), Err(Error::Compacted { .. })));
    }
    assert!(again.snapshot().revision() > issued);
    assert!(again.watch("", durable).is_ok());
    let renewal = again.txn(vec![], vec![Op::PutLazily(draft(lease, "after"))]).await.unwrap();
    assert!(renewal.revision > issued);

    // The next durable commit takes along what was waiting.
    store.txn(vec![], vec![put(pod, "2")]).await.unwrap();
    let later = open_sim(&SimVfs::new(disk.image())).unwrap();
    assert_eq!(later.snapshot().get(&key(lease)).unwrap().value()["value"], "50");
}

#[tokio::test]
async fn renewals_reach_the_disk_now_and_then() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let lease = "/coordination.k8s.io/leases/nodes/a";
    for n in 0..600 {
        store.txn(vec![], vec![Op::PutLazily(draft(lease, &n.to_string()))]).await.unwrap();
    }
    let syncs = disk.events().iter().filter(|event| matches!(event, Event::Sync { .. })).count();
    let crashed = open_sim(&SimVfs::new(disk.image())).unwrap();
    let kept: u64 = crashed.snapshot().get(&key(lease)).unwrap().value()["value"].as_str().unwrap().parse().unwrap();
    assert!(kept > 600 - 300, "{kept}");
    assert!(syncs < 20, "{syncs}");
}

#[tokio::test]
async fn writers_share_a_sync() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let before = disk.events().len();
    disk.hold_syncs(true);
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store: Arc<dyn Store> = store.clone();
        writers.spawn(async move { store.txn(vec![], vec![put(&format!("/core/pods/default/{n}"), "1")]).await });
    }
    // One turn of the scheduler puts all of them into the queue.
    tokio::task::yield_now().await;
    disk.hold_syncs(false);
    assert!(writers.join_all().await.iter().all(Result::is_ok));
    let events = disk.events();
    let syncs = events[before..].iter().filter(|event| matches!(event, Event::Sync { .. })).count();
    assert!(syncs < 16, "{syncs} syncs for 64 writers");
}

#[tokio::test]
async fn the_log_is_bounded_by_checkpoints() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let is_bounded = || {
        let left: usize = disk.image().files().values().map(Vec::len).sum();
        let length = |event: &Event| if let Event::Write { data, .. } = event { data.len() } else { 0 };
        left < disk.events().iter().map(length).sum::<usize>() / 4
    };
    // A checkpoint is written in the background: how many writes pass meanwhile depends on the machine.
    let mut last = 0;
    while !is_bounded() {
        assert!(last < 200_000, "no checkpoint bounds the log");
        for _ in 0..2000 {
            last += 1;
            store.txn(vec![], vec![put("/core/pods/default/a", &last.to_string())]).await.unwrap();
        }
    }
    drop(store);
    let reopened = open_sim(&disk).unwrap().snapshot();
    assert_eq!(reopened.get(&key("/core/pods/default/a")).unwrap().value()["value"], last.to_string());
}
