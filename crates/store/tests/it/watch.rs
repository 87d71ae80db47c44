//! etcd's rules for watches (tests/robustness/validate/watch.go) over random histories: ordered, unique, atomic, reliable,
//! resumable, bookmarkable, filtered, with the exact previous object, and Added only for what was absent.

use std::sync::Arc;

use api::object::Change;
use store::{Cursor, Store};

use crate::contract::Form;
use crate::model::{History, Script, delivered, limits, run};
use crate::sim::Random;

struct Watcher {
    prefix: &'static str,
    started: u64,
    cursor: Box<dyn Cursor>,
    seen: Vec<Change>,
}

impl Watcher {
    fn start(store: &Arc<dyn Store>, prefix: &'static str, after: u64) -> Self {
        Self { prefix, started: after, cursor: store.watch(prefix, after).unwrap(), seen: Vec::new() }
    }

    async fn read(&mut self) {
        let before = self.cursor.revision();
        let batch = self.cursor.next().await.unwrap();
        let reached = self.cursor.revision();
        let inside = |change: &Change| (before + 1..=reached).contains(&change.revision());
        assert!(batch.iter().all(inside), "a bookmark at {before} or {reached} would have lied");
        self.seen.extend(batch);
    }

    /// Compares everything seen with what history says, which covers all rules at once.
    fn check(&self, history: &History) {
        let expected = history.expected(self.prefix, self.started, self.cursor.revision());
        let seen = delivered(&self.seen);
        assert_eq!(seen, expected, "watch of {:?} after {}", self.prefix, self.started);
    }
}

async fn check(form: Form, seed: u64) {
    const PREFIXES: [&str; 6] = ["", "/core/", "/core/pods/", "/core/pods/default/", "/core/secrets/", "/batch/"];
    let fixture = form.store(limits(10_000));
    let store = &fixture.store;
    let (mut random, mut script, mut history) = (Random::new(seed), Script::new(seed), History::default());
    let mut watchers = vec![Watcher::start(store, "", store.snapshot().revision())];
    for _ in 0..150 {
        run(&**store, &mut script, random.below(5), &mut history, |_| {}).await;
        let current = store.snapshot().revision();
        if watchers.len() < 24 {
            let after = 1 + random.next() % current;
            watchers.push(Watcher::start(store, PREFIXES[random.below(PREFIXES.len())], after));
        }
        let n = random.below(watchers.len());
        if watchers[n].cursor.revision() < current {
            watchers[n].read().await;
        }
        if random.below(8) == 0 {
            // A client that comes back with its last bookmark.
            watchers[n].cursor = store.watch(watchers[n].prefix, watchers[n].cursor.revision()).unwrap();
        }
    }
    let current = store.snapshot().revision();
    for watcher in &mut watchers {
        while watcher.cursor.revision() < current {
            watcher.read().await;
        }
        watcher.check(&history);
    }
}

#[tokio::test]
async fn rules_hold_in_memory() {
    for seed in 1..=8 {
        check(Form::Memory, seed).await;
    }
}

#[tokio::test]
async fn rules_hold_on_disk() {
    for seed in 11..=14 {
        check(Form::Simulated, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_hold_while_writers_run() {
    let fixture = Form::Simulated.store(limits(100_000));
    let start = fixture.store.snapshot().revision();
    let history = Arc::new(tokio::sync::Mutex::new(History::default()));
    let mut writers = tokio::task::JoinSet::new();
    for seed in 0..4 {
        let (store, history) = (fixture.store.clone(), history.clone());
        writers.spawn(async move {
            let mut script = Script::new(100 + seed);
            for _ in 0..200 {
                let (compares, ops, lazy) = script.next();
                if let Ok(committed) = store.txn(compares, ops.clone()).await {
                    history.lock().await.record(&ops, &committed, lazy);
                }
            }
        });
    }
    let mut watchers: Vec<_> =
        ["", "/core/pods/", "/core/secrets/"].map(|prefix| Watcher::start(&fixture.store, prefix, start)).into();
    while !writers.is_empty() {
        tokio::select! {
            _ = writers.join_next() => {}
            () = watchers[0].read() => {}
        }
    }
    let current = fixture.store.snapshot().revision();
    for watcher in &mut watchers {
        while watcher.cursor.revision() < current {
            watcher.read().await;
        }
        watcher.check(&*history.lock().await);
    }
}
