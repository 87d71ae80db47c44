//! The contract of `Store`, for every form of it: in memory, durable on a simulated disk, durable in a directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::object::Change;
use store::durable::{Options, open};
use store::memory::Memory;
use store::seal::{Keyring, SystemRng};
use store::state::Limits;
use store::vfs::{RealVfs, Vfs};
use store::{Compare, Error, Op, Store};

use crate::model::{KEYS, contents, draft, key, limits, options, put};
use crate::sim::{SeededRng, SimVfs};

/// A directory of this test's own, gone when it is dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("coracle-store-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[derive(Clone, Copy)]
pub enum Form {
    Memory,
    Simulated,
    Directory,
}

/// A store, and what must outlive it.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    _directory: Option<Directory>,
}

impl Form {
    pub fn store(self, limits: Limits) -> Fixture {
        match self {
            Self::Memory => Fixture { store: Memory::with_limits(limits), _directory: None },
            Self::Simulated => {
                let disk = Arc::new(SimVfs::default()) as Arc<dyn Vfs>;
                let store = open(disk, SeededRng::new(1), Options { limits, ..options() }).unwrap();
                Fixture { store, _directory: None }
            }
            Self::Directory => {
                let directory = Directory::new();
                let keys = Keyring::parse(KEYS).unwrap();
                let options = Options { limits, ..Options::new(directory.0.join("store"), keys) };
                let store = open(Arc::new(RealVfs), Arc::new(SystemRng), options).unwrap();
                Fixture { store, _directory: Some(directory) }
            }
        }
    }
}

macro_rules! for_every_form {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $name() { super::$name(super::Form::Memory).await })*
        }
        mod simulated {
            $(#[tokio::test] async fn $name() { super::$name(super::Form::Simulated).await })*
        }
        mod directory {
            $(#[tokio::test] async fn $name() { super::$name(super::Form::Directory).await })*
        }
    };
}

for_every_form!(
    each_change_is_one_revision,
    what_changes_nothing_takes_no_revision,
    a_compare_that_does_not_hold_is_named,
    a_transaction_is_all_or_nothing,
    writes_to_one_key_in_a_transaction_show_as_one_change,
    a_delete_returns_the_last_state,
    a_snapshot_does_not_change,
    an_earlier_state_is_read_back,
    pages_of_a_list_agree,
    what_is_compacted_or_not_yet_there_is_told,
    a_lazy_put_is_visible_at_once,
    exactly_one_of_many_creators_wins,
    a_waiting_watch_is_woken,
    a_dropped_wait_loses_nothing,
    a_watch_moves_on_while_others_change,
    a_watch_that_slept_through_a_compaction_misses_nothing,
    a_watch_whose_change_is_compacted_away_ends,
    a_slow_watch_costs_nothing_and_ends_when_its_place_is_gone,
    large_objects_are_kept,
);

async fn each_change_is_one_revision(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let first = store.snapshot().revision();
    assert!(first > 0, "0 means any revision to clients");

    let a = store.txn(vec![], vec![put("/core/pods/default/a", "1"), put("/core/pods/default/b", "1")]).await.unwrap();
    let b = store.txn(vec![], vec![put("/core/pods/default/a", "2")]).await.unwrap();

    assert_eq!((a.revision, b.revision), (first + 1, first + 2));
    assert_eq!(a.objects[1].as_ref().unwrap().revision, first + 1);
    assert_eq!(store.snapshot().get(&key("/core/pods/default/a")).unwrap().revision, first + 2);
    store.wait_until(b.revision).await.unwrap();
}

async fn what_changes_nothing_takes_no_revision(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let before = store.snapshot().revision();
    let committed = store.txn(vec![], vec![Op::Delete(key("/core/pods/default/a"))]).await.unwrap();
    assert_eq!(committed.revision, before);
    assert!(committed.objects[0].is_none());
    assert_eq!(store.txn(vec![], vec![]).await.unwrap().revision, before);
}

async fn a_compare_that_does_not_hold_is_named(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let a = key("/core/pods/default/a");
    let made = store.txn(vec![Compare::Absent(a.clone())], vec![put(a.as_str(), "1")]).await.unwrap().revision;

    for bad in [Compare::Absent(a.clone()), Compare::Revision(a.clone(), made - 1)] {
        let compares = vec![Compare::Exists(a.clone()), bad];
        let conflict = store.txn(compares, vec![put(a.as_str(), "2")]).await.unwrap_err();
        let Error::Conflict { index: 1, current: Some(current) } = conflict else { panic!("{conflict}") };
        assert_eq!(current.revision, made);
    }
    let missing = Compare::Revision(key("/core/pods/default/b"), made);
    let conflict = store.txn(vec![missing], vec![]).await.unwrap_err();
    assert!(matches!(conflict, Error::Conflict { index: 0, current: None }));
    assert_eq!(store.snapshot().revision(), made);

    let holds = vec![Compare::Revision(a.clone(), made), Compare::Exists(a.clone())];
    store.txn(holds, vec![put(a.as_str(), "2")]).await.unwrap();
}

async fn a_transaction_is_all_or_nothing(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let before = contents(&store.snapshot());
    let compares = vec![Compare::Exists(key("/core/pods/default/a"))];
    store.txn(compares, vec![put("/core/pods/default/b", "1"), put("/core/pods/default/c", "1")]).await.unwrap_err();
    assert_eq!(contents(&store.snapshot()), before);
}

async fn writes_to_one_key_in_a_transaction_show_as_one_change(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let a = key("/core/pods/default/a");
    let mut watch = store.watch("/core/pods/", store.snapshot().revision()).unwrap();

    store.txn(vec![], vec![put(a.as_str(), "1"), Op::Delete(a.clone()), put(a.as_str(), "2")]).await.unwrap();
    assert!(matches!(&watch.next().await.unwrap()[..], [Change::Added(new)] if new.value()["value"] == "2"));

    store.txn(vec![], vec![Op::Delete(a.clone()), put(a.as_str(), "3")]).await.unwrap();
    let changes = watch.next().await.unwrap();
    assert!(matches!(&changes[..], [Change::Modified { old, .. }] if old.value()["value"] == "2"));

    let gone = key("/core/pods/default/b");
    let before = store.snapshot().revision();
    let nothing = store.txn(vec![], vec![put(gone.as_str(), "1"), Op::Delete(gone)]).await.unwrap();
    assert_eq!(nothing.revision, before);
}

async fn a_delete_returns_the_last_state(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let a = key("/core/pods/default/a");
    let made = store.txn(vec![], vec![put(a.as_str(), "1")]).await.unwrap().revision;
    let mut watch = store.watch("", made).unwrap();

    let deleted = store.txn(vec![], vec![Op::Delete(a.clone())]).await.unwrap();

    assert_eq!(deleted.objects[0].as_ref().unwrap().revision, made);
    let changes = watch.next().await.unwrap();
    let [Change::Deleted { last, revision }] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((last.revision, *revision), (made, deleted.revision));
    assert!(store.snapshot().get(&a).is_none());
}

async fn a_snapshot_does_not_change(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    store.txn(vec![], vec![put("/core/pods/default/a", "1")]).await.unwrap();
    let (snapshot, before) = (store.snapshot(), contents(&store.snapshot()));
    store.txn(vec![], vec![put("/core/pods/default/a", "2"), put("/core/pods/default/b", "1")]).await.unwrap();
    assert_eq!(contents(&snapshot), before);
}

async fn an_earlier_state_is_read_back(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let mut states = vec![store.snapshot()];
    for op in [
        put("/core/pods/default/a", "1"),
        put("/core/pods/default/b", "1"),
        put("/core/pods/default/a", "2"),
        Op::Delete(key("/core/pods/default/b")),
        put("/core/pods/default/b", "2"),
    ] {
        store.txn(vec![], vec![op]).await.unwrap();
        states.push(store.snapshot());
    }
    for state in states {
        let again = store.snapshot_at(state.revision()).unwrap();
        assert_eq!((again.revision(), contents(&again)), (state.revision(), contents(&state)));
    }
}

async fn pages_of_a_list_agree(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let pods = (0..10).map(|n| put(&format!("/core/pods/default/{n}"), "1"));
    let revision =
        store.txn(vec![], pods.chain([put("/core/podtemplates/default/0", "1")]).collect()).await.unwrap().revision;
    let whole: Vec<_> = store.snapshot().range("/core/pods/", None).map(|object| object.json()).collect();

    let (mut paged, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.snapshot_at(revision).unwrap();
        let objects: Vec<_> = page.range("/core/pods/", after.as_deref()).take(3).cloned().collect();
        let Some(last) = objects.last() else { break };
        after = Some(last.key().to_string());
        paged.extend(objects.iter().map(|object| object.json()));
        // What comes between two pages does not show in the second.
        let ops = vec![
            put("/core/pods/default/5", "2"),
            Op::Delete(key("/core/pods/default/7")),
            put("/core/pods/default/55", "1"),
        ];
        store.txn(vec![], ops).await.unwrap();
    }
    assert_eq!(paged.len(), 10);
    assert_eq!(paged, whole);
}

async fn what_is_compacted_or_not_yet_there_is_told(form: Form) {
    let fixture = form.store(limits(4));
    let store = &fixture.store;
    let first = store.snapshot().revision();
    for n in 0..10 {
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
    }
    let (oldest, current) = (first + 6, first + 10);
    for gone in [first, oldest - 1] {
        let expected = |error: Error| matches!(error, Error::Compacted { requested, oldest: o } if requested == gone && o == oldest);
        assert!(expected(store.snapshot_at(gone).unwrap_err()));
        assert!(expected(store.watch("", gone).err().unwrap()));
    }
    assert_eq!(store.snapshot_at(oldest).unwrap().range("", None).next().unwrap().value()["value"], "5");
    let mut watch = store.watch("", oldest).unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 4);

    let ahead = |error: Error| matches!(error, Error::Future { requested, current: c } if requested == current + 1 && c == current);
    assert!(ahead(store.snapshot_at(current + 1).unwrap_err()));
    assert!(ahead(store.watch("", current + 1).err().unwrap()));
    assert!(ahead(store.wait_until(current + 1).await.unwrap_err()));
}

async fn a_lazy_put_is_visible_at_once(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let lease = "/coordination.k8s.io/leases/nodes/a";
    let mut watch = store.watch("", store.snapshot().revision()).unwrap();
    for n in 0..3 {
        let current = store.snapshot().get(&key(lease)).map(|object| Compare::Revision(key(lease), object.revision));
        let op = Op::PutLazily(draft(lease, &n.to_string()));
        let committed = store.txn(current.into_iter().collect(), vec![op]).await.unwrap();
        assert_eq!(store.snapshot().get(&key(lease)).unwrap().revision, committed.revision);
        assert_eq!(watch.next().await.unwrap()[0].revision(), committed.revision);
    }
}

async fn exactly_one_of_many_creators_wins(form: Form) {
    let fixture = form.store(Limits::default());
    let mut creators = tokio::task::JoinSet::new();
    for n in 0..32 {
        let store = fixture.store.clone();
        creators.spawn(async move {
            let a = key("/core/pods/default/a");
            store.txn(vec![Compare::Absent(a)], vec![put("/core/pods/default/a", &n.to_string())]).await
        });
    }
    let results = creators.join_all().await;
    let winner = results.iter().flatten().next().unwrap().revision;
    assert_eq!(results.iter().flatten().count(), 1);
    for error in results.into_iter().filter_map(Result::err) {
        assert!(matches!(error, Error::Conflict { current: Some(current), .. } if current.revision == winner));
    }
}

async fn a_waiting_watch_is_woken(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let mut watch = store.watch("/core/pods/", store.snapshot().revision()).unwrap();
    let waiting = tokio::spawn(async move { watch.next().await.unwrap().len() });
    tokio::task::yield_now().await;
    store.txn(vec![], vec![put("/core/pods/default/a", "1")]).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 1);
}

async fn a_dropped_wait_loses_nothing(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let mut watch = store.watch("", store.snapshot().revision()).unwrap();
    for n in 0..3 {
        tokio::select! {
            biased;
            changes = watch.next() => panic!("nothing has happened yet, but {changes:?}"),
            () = tokio::task::yield_now() => {}
        }
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
        assert_eq!(watch.next().await.unwrap().len(), 1);
    }
}

async fn a_watch_moves_on_while_others_change(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let start = store.snapshot().revision();
    let watch = store.watch("/core/secrets/", start).unwrap();
    let other = store.txn(vec![], vec![put("/core/pods/default/a", "1")]).await.unwrap().revision;
    assert_eq!(watch.revision(), other);

    store.txn(vec![], vec![put("/core/secrets/default/a", "1")]).await.unwrap();
    store.txn(vec![], vec![put("/core/pods/default/a", "2")]).await.unwrap();
    assert_eq!(watch.revision(), other, "what comes next has not been returned");
    assert_eq!(store.unchanged("/core/secrets/", start), other);
    drop(watch);
    assert_eq!(store.unchanged("/core/secrets/", start), start, "nobody follows them any more");
}

async fn a_watch_that_slept_through_a_compaction_misses_nothing(form: Form) {
    let fixture = form.store(limits(4));
    let store = &fixture.store;
    let start = store.snapshot().revision();
    let mut watch = store.watch("/core/secrets/", start).unwrap();
    for n in 0..20 {
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
    }
    assert!(store.watch("/core/secrets/", start).is_err(), "who begins there is told that it is gone");
    for name in ["/core/secrets/default/a", "/core/pods/default/a", "/core/secrets/default/b"] {
        store.txn(vec![], vec![put(name, "new")]).await.unwrap();
    }
    let seen = watch.next().await.unwrap();
    assert_eq!(seen.iter().map(|change| change.key().name()).collect::<Vec<_>>(), ["a", "b"]);
}

async fn a_watch_whose_change_is_compacted_away_ends(form: Form) {
    let fixture = form.store(limits(4));
    let store = &fixture.store;
    let mut watch = store.watch("/core/secrets/", store.snapshot().revision()).unwrap();
    let seen = store.txn(vec![], vec![put("/core/secrets/default/a", "1")]).await.unwrap().revision;
    assert_eq!(watch.next().await.unwrap().len(), 1);
    store.txn(vec![], vec![put("/core/secrets/default/a", "2")]).await.unwrap();
    for n in 0..4 {
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
    }
    let gone = watch.next().await.unwrap_err();
    assert!(matches!(gone, Error::Compacted { requested, .. } if requested == seen), "{gone}");
}

async fn a_slow_watch_costs_nothing_and_ends_when_its_place_is_gone(form: Form) {
    let fixture = form.store(limits(8));
    let store = &fixture.store;
    let start = store.snapshot().revision();
    let first = store.txn(vec![], vec![put("/core/pods/default/a", "1")]).await.unwrap();
    let object = Arc::downgrade(first.objects[0].as_ref().unwrap());
    drop(first);
    let (mut slow, mut slower) = (store.watch("", start).unwrap(), store.watch("", start).unwrap());
    for n in 0..7 {
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
    }
    assert_eq!(slow.next().await.unwrap().len(), 8, "all of history is still there");

    for n in 0..3 {
        store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.unwrap();
    }
    assert!(object.upgrade().is_none(), "a watch that has not read it does not keep it");
    let gone = slower.next().await.unwrap_err();
    assert!(matches!(gone, Error::Compacted { requested, .. } if requested == start), "{gone}");
    assert_eq!(slow.next().await.unwrap().len(), 3);
}

async fn large_objects_are_kept(form: Form) {
    let fixture = form.store(Limits::default());
    let store = &fixture.store;
    let large = "x".repeat(3 << 20);
    for name in ["/core/configmaps/default/a", "/core/secrets/default/a"] {
        store.txn(vec![], vec![put(name, &large)]).await.unwrap();
        assert_eq!(store.snapshot().get(&key(name)).unwrap().value()["value"], large.as_str());
    }
}
