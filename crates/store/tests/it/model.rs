//! What the tests of a store share: objects, random transactions, and the history that they must have made.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use api::key::Key;
use api::object::{Change, Draft};
use serde_json::json;
use store::durable::{Durable, OpenError, Options, open};
use store::seal::Keyring;
use store::state::Limits;
use store::vfs::Vfs;
use store::{Committed, Compare, Error, Op, Snapshot, Store};

use crate::sim::{Random, SeededRng, SimVfs};

pub const KEYS: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

pub fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

pub fn draft(of: &str, value: &str) -> Draft {
    let key = key(of);
    let object = json!({ "metadata": { "name": key.name() }, "value": value });
    Draft::new(key, object).unwrap()
}

pub fn put(of: &str, value: &str) -> Op {
    Op::Put(draft(of, value))
}

/// Small files, so that a short test crosses every boundary.
pub fn options() -> Options {
    Options { segment_bytes: 2048, checkpoint_bytes: 5000, ..Options::new("/var/store", Keyring::parse(KEYS).unwrap()) }
}

pub fn open_sim(disk: &SimVfs) -> Result<Arc<Durable>, OpenError> {
    open(Arc::new(disk.clone()) as Arc<dyn Vfs>, SeededRng::new(disk.calls() + 1), options())
}

/// Objects by key, with revision and body.
pub type Contents = BTreeMap<String, (u64, Vec<u8>)>;

pub fn contents(snapshot: &Snapshot) -> Contents {
    let entry = |object: &Arc<api::object::Object>| {
        (object.key().to_string(), (object.revision, object.draft().body().to_vec()))
    };
    snapshot.range("", None).map(entry).collect()
}

/// Random transactions over a few keys of four resources, one of them Secrets.
pub struct Script {
    random: Random,
    writes: u64,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), writes: 0 }
    }

    fn key(&mut self) -> String {
        let resource =
            ["/core/pods/default/", "/core/pods/other/", "/core/secrets/default/", "/apps/deployments/default/"];
        format!("{}{}", resource[self.random.below(4)], self.random.below(5))
    }

    fn op(&mut self) -> Op {
        self.writes += 1;
        let (of, padding) = (self.key(), "x".repeat(self.random.below(200)));
        match self.random.below(5) {
            0 => Op::Delete(key(&of)),
            _ => put(&of, &format!("{}{padding}", self.writes)),
        }
    }

    /// The next transaction, and whether it may be lost in a crash.
    pub fn next(&mut self) -> (Vec<Compare>, Vec<Op>, bool) {
        if self.random.below(4) == 0 {
            self.writes += 1;
            let lease = format!("/coordination.k8s.io/leases/nodes/{}", self.random.below(2));
            return (Vec::new(), vec![Op::PutLazily(draft(&lease, &self.writes.to_string()))], true);
        }
        let compares = match self.random.below(4) {
            0 => vec![Compare::Absent(key(&self.key()))],
            1 => vec![Compare::Exists(key(&self.key()))],
            _ => Vec::new(),
        };
        let mut ops: Vec<_> = (0..1 + self.random.below(3)).map(|_| self.op()).collect();
        // Several writes to one key are tested by themselves.
        let mut seen = BTreeSet::new();
        ops.retain(|op| match op {
            Op::Put(draft) | Op::PutLazily(draft) => seen.insert(draft.key.to_string()),
            Op::Delete(key) => seen.insert(key.to_string()),
        });
        (compares, ops, false)
    }
}

/// What was committed, by revision.
#[derive(Default)]
pub struct History {
    pub commits: BTreeMap<u64, Recorded>,
}

pub struct Recorded {
    /// By key: the object's new body, or its removal.
    pub writes: BTreeMap<String, Option<Vec<u8>>>,
    pub lazy: bool,
}

impl History {
    /// Notes a transaction's outcome; returns its revision if it changed anything.
    pub fn record(&mut self, ops: &[Op], committed: &Committed, lazy: bool) -> Option<u64> {
        let mut writes = BTreeMap::new();
        for (op, object) in ops.iter().zip(&committed.objects) {
            match op {
                Op::Put(draft) | Op::PutLazily(draft) => {
                    assert_eq!(object.as_ref().unwrap().draft().body(), draft.body());
                    writes.insert(draft.key.to_string(), Some(draft.body().to_vec()));
                }
                Op::Delete(key) if object.is_some() => drop(writes.insert(key.to_string(), None)),
                Op::Delete(_) => {}
            }
        }
        if writes.is_empty() {
            return None;
        }
        let again = self.commits.insert(committed.revision, Recorded { writes, lazy });
        assert!(again.is_none(), "revision {} was issued twice", committed.revision);
        Some(committed.revision)
    }

    /// The contents at every revision, the empty store included.
    pub fn states(&self) -> BTreeMap<u64, Contents> {
        let mut contents = Contents::new();
        let mut states = BTreeMap::from([(1, contents.clone())]);
        for (&revision, commit) in &self.commits {
            for (key, body) in &commit.writes {
                match body {
                    Some(body) => drop(contents.insert(key.clone(), (revision, body.clone()))),
                    None => drop(contents.remove(key)),
                }
            }
            states.insert(revision, contents.clone());
        }
        states
    }

    /// What a watch of `prefix` after revision `after` must deliver until `until`, in order, one line per change.
    pub fn expected(&self, prefix: &str, after: u64, until: u64) -> Vec<BTreeSet<String>> {
        let states = self.states();
        let mut expected = Vec::new();
        for (&revision, commit) in self.commits.range((Bound::Excluded(after), Bound::Included(until))) {
            let (_, before) = states.range(..revision).next_back().unwrap();
            let lines = commit.writes.iter().filter(|(key, _)| key.starts_with(prefix)).filter_map(|(key, body)| {
                let old = before.get(key);
                match (old, body) {
                    (None, None) => None,
                    (None, Some(new)) => Some(line(revision, key, None, Some((revision, new)))),
                    (Some((r, old)), new) => {
                        let new = new.as_ref().map(|new| (revision, new));
                        Some(line(revision, key, Some((*r, old)), new))
                    }
                }
            });
            let lines: BTreeSet<_> = lines.collect();
            if !lines.is_empty() {
                expected.push(lines);
            }
        }
        expected
    }
}

fn line(revision: u64, key: &str, old: Option<(u64, &Vec<u8>)>, new: Option<(u64, &Vec<u8>)>) -> String {
    let text = |side: Option<(u64, &Vec<u8>)>| match side {
        Some((revision, body)) => format!("{revision}:{}", String::from_utf8_lossy(body)),
        None => "nothing".to_owned(),
    };
    format!("{revision} {key} {} -> {}", text(old), text(new))
}

/// The same form for what a cursor returned: one set for each transaction, in order.
pub fn delivered(changes: &[Change]) -> Vec<BTreeSet<String>> {
    let mut transactions: Vec<(u64, BTreeSet<String>)> = Vec::new();
    for change in changes {
        let body = |object: &Arc<api::object::Object>| (object.revision, object.draft().body().to_vec());
        let (old, new) = match change {
            Change::Added(new) => (None, Some(body(new))),
            Change::Modified { old, new } => (Some(body(old)), Some(body(new))),
            Change::Deleted { last, .. } => (Some(body(last)), None),
        };
        let side = |side: &Option<(u64, Vec<u8>)>| side.clone();
        let (old, new) = (side(&old), side(&new));
        let revision = change.revision();
        let text = line(
            revision,
            change.key().as_str(),
            old.as_ref().map(|(r, b)| (*r, b)),
            new.as_ref().map(|(r, b)| (*r, b)),
        );
        match transactions.last_mut() {
            Some((last, lines)) if *last == revision => assert!(lines.insert(text), "a change came twice"),
            Some((last, _)) if *last > revision => panic!("revision {revision} came after {last}"),
            Some(_) | None => transactions.push((revision, BTreeSet::from([text]))),
        }
    }
    transactions.into_iter().map(|(_, lines)| lines).collect()
}

/// Runs `n` transactions of a script, one after the other.
pub async fn run(store: &dyn Store, script: &mut Script, n: usize, history: &mut History, mut acked: impl FnMut(u64)) {
    for _ in 0..n {
        let (compares, ops, lazy) = script.next();
        match store.txn(compares, ops.clone()).await {
            Ok(committed) => {
                if let Some(revision) = history.record(&ops, &committed, lazy) {
                    acked(revision);
                }
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A store that keeps `commits` transactions.
pub fn limits(commits: usize) -> Limits {
    Limits { commits, ..Limits::default() }
}
