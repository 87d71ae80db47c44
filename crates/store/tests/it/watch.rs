//! etcd's rules for watches (tests/robustness/validate/watch.go) over random histories: ordered, unique, atomic, reliable,
//! resumable, bookmarkable, filtered, with the exact previous object, and Added only for what was absent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use api::object::Change;
use store::state::Limits;
use store::{Cursor, Store};
use tokio::task::JoinSet;

use crate::contract::Form;
use crate::model::{History, Script, delivered, limits, put, run};
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
    let mut writers = JoinSet::new();
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

/// What is written last, once for each of the resources and namespaces of [`Script`].
const ENDS: [&str; 5] = [
    "/core/pods/default/end",
    "/core/pods/other/end",
    "/core/secrets/default/end",
    "/apps/deployments/default/end",
    "/coordination.k8s.io/leases/nodes/end",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_by_those_who_sleep_while_others_change() {
    let fixture = Form::Simulated.store(limits(100_000));
    let store = &fixture.store;
    let start = store.snapshot().revision();
    let prefixes = ENDS.iter().flat_map(|end| {
        // The resource, its namespace, and one name in it.
        let slashes: Vec<usize> = end.match_indices('/').map(|(at, _)| at).collect();
        [&end[..=slashes[2]], &end[..=slashes[3]], *end]
    });
    let mut watching = JoinSet::new();
    for prefix in prefixes.chain([""]) {
        let mut watcher = Watcher::start(store, prefix, start);
        let ends = ENDS.iter().filter(|end| end.starts_with(prefix)).count();
        watching.spawn(async move {
            let is_end = |change: &&Change| change.key().name() == "end";
            while watcher.seen.iter().filter(is_end).count() < ends {
                watcher.read().await;
            }
            watcher
        });
    }
    let history = Arc::new(tokio::sync::Mutex::new(History::default()));
    let mut writers = JoinSet::new();
    for seed in 0..4 {
        let (store, history) = (store.clone(), history.clone());
        writers.spawn(async move {
            let mut script = Script::new(200 + seed);
            for _ in 0..200 {
                let (compares, ops, lazy) = script.next();
                if let Ok(committed) = store.txn(compares, ops.clone()).await {
                    history.lock().await.record(&ops, &committed, lazy);
                }
            }
        });
    }
    writers.join_all().await;
    let ops = ENDS.map(|end| put(end, "")).to_vec();
    let committed = store.txn(vec![], ops.clone()).await.unwrap();
    history.lock().await.record(&ops, &committed, false);
    for watcher in watching.join_all().await {
        watcher.check(&*history.lock().await);
    }
}

/// How often a task was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_watch_is_woken_by_its_own_changes_alone() {
    const KINDS: usize = 20;
    for form in [Form::Memory, Form::Simulated] {
        let fixture = form.store(Limits::default());
        let store = &fixture.store;
        let start = store.snapshot().revision();
        let mut cursors: Vec<_> =
            (0..KINDS).map(|n| store.watch(&format!("/core/kind{n}/default/"), start).unwrap()).collect();
        let woken: Vec<Arc<Woken>> = (0..KINDS).map(|_| Arc::default()).collect();
        let mut waiting: Vec<_> = cursors.iter_mut().map(|cursor| cursor.next()).collect();
        let wakers: Vec<_> = woken.iter().map(|woken| Waker::from(woken.clone())).collect();
        for (next, waker) in waiting.iter_mut().zip(&wakers) {
            assert!(next.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        for of in ["kind7/default", "kind7/other", "kind1/other", "kind77/default"] {
            for n in 0..50 {
                store.txn(vec![], vec![put(&format!("/core/{of}/a"), &n.to_string())]).await.unwrap();
            }
        }
        let counts: Vec<usize> = woken.iter().map(|woken| woken.0.load(Ordering::SeqCst)).collect();
        assert!((0..KINDS).all(|n| (counts[n] > 0) == (n == 7)), "{counts:?}");
        let Poll::Ready(seen) = waiting[7].as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it was woken");
        };
        assert_eq!(seen.unwrap().len(), 50);
        drop(waiting);
        let current = store.snapshot().revision();
        assert!(cursors.iter().all(|cursor| cursor.revision() == current));
    }
}
