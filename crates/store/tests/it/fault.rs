//! Every call fails once, in every way: nothing is acknowledged falsely, reads go on, and a full disk is survived.

use std::collections::BTreeMap;
use std::sync::Arc;

use store::durable::Durable;
use store::{Error, Op, Store};

use crate::model::{Contents, Script, contents, draft, key, open_sim, put};
use crate::sim::{Crash, Event, Fault, Image, Random, SimVfs};

const FAULTS: [Fault; 6] =
    [Fault::Enospc, Fault::Eio, Fault::Short, Fault::ShortThenFull, Fault::StaysFull, Fault::Interrupted];

/// What may be in the store: one state for certain, until a write fails and closes the store.
struct Expected {
    certain: Contents,
    /// By key, what a write of unknown outcome would have made of it.
    possible: BTreeMap<String, Option<Vec<u8>>>,
    issued: u64,
}

impl Expected {
    fn apply(&mut self, ops: &[Op], revision: u64) {
        for op in ops {
            match op {
                Op::Put(draft) | Op::PutLazily(draft) => {
                    self.certain.insert(draft.key.to_string(), (revision, draft.body().to_vec()));
                }
                Op::Delete(key) => drop(self.certain.remove(key.as_str())),
            }
        }
        self.issued = self.issued.max(revision);
    }

    fn doubt(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Put(draft) | Op::PutLazily(draft) => {
                    self.possible.insert(draft.key.to_string(), Some(draft.body().to_vec()));
                }
                Op::Delete(key) => drop(self.possible.insert(key.to_string(), None)),
            }
        }
    }

    fn check(&self, store: &Durable, place: &str) {
        let found = contents(&store.snapshot());
        for key in self.certain.keys().chain(found.keys()).chain(self.possible.keys()) {
            let (certain, found) = (self.certain.get(key), found.get(key));
            let is = |body: Option<&Vec<u8>>| found.map(|(_, body)| body) == body;
            let fits = is(certain.map(|(_, body)| body)) || self.possible.get(key).is_some_and(|b| is(b.as_ref()));
            assert!(fits, "{place}: {key} is not what was acknowledged");
        }
        assert!(store.snapshot().revision() >= self.issued, "{place}");
    }
}

/// Durable transactions only: what becomes of lazy ones in a crash is tested elsewhere.
fn next(script: &mut Script) -> (Vec<store::Compare>, Vec<Op>) {
    loop {
        let (compares, ops, lazy) = script.next();
        if !lazy {
            return (compares, ops);
        }
    }
}

/// Runs a script over a disk that fails. Returns whether the store outlived it.
async fn run(disk: &SimVfs, store: &Durable, script: &mut Script, expected: &mut Expected, place: &str) -> bool {
    for _ in 0..30 {
        let (compares, ops) = next(script);
        match store.txn(compares, ops.clone()).await {
            Ok(committed) => expected.apply(&ops, committed.revision),
            Err(Error::Conflict { .. }) => {}
            Err(Error::Io(_)) => {
                // The writer has answered before it stops: whether it did is known once it has taken the next request.
                let closed = matches!(store.txn(vec![], vec![]).await, Err(Error::Closed));
                if closed {
                    expected.doubt(&ops);
                }
            }
            Err(Error::Closed) => {}
            Err(error) => panic!("{place}: {error}"),
        }
        assert_eq!(contents(&store.snapshot()), expected.certain, "{place}: readers saw what was not acknowledged");
    }
    disk.heal();
    let (op, mut closed) = (put("/core/pods/default/last", "1"), true);
    if let Ok(committed) = store.txn(vec![], vec![op.clone()]).await {
        expected.apply(&[op], committed.revision);
        closed = false;
    }
    !closed
}

async fn scenario(nth: u64, fault: Fault, seed: u64) -> Option<()> {
    let place = format!("{fault:?} on call {nth}");
    let disk = SimVfs::failing(Image::default(), nth, fault);
    let mut expected = Expected { certain: Contents::new(), possible: BTreeMap::new(), issued: 1 };
    let Ok(store) = open_sim(&disk) else {
        disk.heal();
        expected.check(&open_sim(&disk).unwrap_or_else(|error| panic!("{place}: {error}")), &place);
        return Some(());
    };
    let mut script = Script::new(seed);
    let alive = run(&disk, &store, &mut script, &mut expected, &place).await;
    let struck = disk.struck();
    if !alive {
        store.closed().await;
    }
    drop(store);
    let place = format!("{place}, {struck:?}");

    // A short write is not a failure, and space that comes back is enough after a full disk.
    let survives = match fault {
        Fault::Short | Fault::StaysFull => true,
        Fault::Enospc | Fault::ShortThenFull => {
            matches!(struck, None | Some("create" | "preallocate" | "write_at" | "rename" | "list" | "remove"))
        }
        Fault::Interrupted => matches!(struck, None | Some("write_at" | "read_at")),
        Fault::Eio => struck.is_none(),
    };
    assert!(alive || !survives, "{place}: the store did not go on");

    // The process is restarted; the machine goes on, and then loses its power.
    let store = open_sim(&disk).unwrap_or_else(|error| panic!("{place}: {error}"));
    expected.check(&store, &place);
    let found = contents(&store.snapshot());
    (expected.certain, expected.possible) = (found, BTreeMap::new());
    let op = put("/core/pods/default/again", "1");
    let committed = store.txn(vec![], vec![op.clone()]).await.unwrap();
    assert!(committed.revision > expected.issued, "{place}: a revision was issued twice");
    expected.apply(&[op], committed.revision);
    drop(store);
    let mut random = Random::new(nth);
    for crash in [Crash::Killed, Crash::Dropped, Crash::Reordered] {
        let image = disk.crash(disk.events().len(), crash, &mut random);
        let place = format!("{place}, then {crash:?}");
        let store = open_sim(&SimVfs::new(image)).unwrap_or_else(|error| panic!("{place}: {error}"));
        expected.check(&store, &place);
    }
    (nth < disk.calls() && (struck.is_some() || fault == Fault::Short)).then_some(())
}

async fn check(fault: Fault) {
    let mut calls = 0;
    for nth in 1.. {
        match scenario(nth, fault, 7).await {
            Some(()) => calls = nth,
            None => break,
        }
        assert!(nth < 5000, "the script has an end");
        if fault == Fault::Short && nth > 200 {
            break;
        }
    }
    println!("{fault:?} on {calls} calls");
    assert!(calls > 60);
}

#[tokio::test]
async fn a_full_disk_is_never_a_false_answer() {
    check(FAULTS[0]).await;
}

#[tokio::test]
async fn an_io_error_is_never_a_false_answer() {
    check(FAULTS[1]).await;
}

#[tokio::test]
async fn a_short_write_is_completed() {
    check(FAULTS[2]).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_write_is_survived() {
    check(FAULTS[3]).await;
}

#[tokio::test]
async fn a_disk_that_stays_full_for_a_while_is_survived() {
    check(FAULTS[4]).await;
}

#[tokio::test]
async fn an_interrupted_call_is_never_a_false_answer() {
    check(FAULTS[5]).await;
}

#[tokio::test]
async fn every_call_of_a_restart_may_fail() {
    let disk = SimVfs::default();
    let store = open_sim(&disk).unwrap();
    let mut script = Script::new(9);
    for _ in 0..40 {
        let (compares, ops) = next(&mut script);
        if let Err(error) = store.txn(compares, ops).await {
            assert!(matches!(error, Error::Conflict { .. }));
        }
    }
    drop(store);
    // As it was, and with half of the last frame.
    let last = disk.events().iter().rposition(|event| matches!(event, Event::Write { .. })).unwrap();
    for image in [disk.image(), disk.crash(last + 1, Crash::TornByte, &mut Random::new(1))] {
        let expected = contents(&open_sim(&SimVfs::new(image.clone())).unwrap().snapshot());
        for fault in FAULTS {
            for nth in 1.. {
                let disk = SimVfs::failing(image.clone(), nth, fault);
                let failed = open_sim(&disk).is_err();
                disk.heal();
                let store: Arc<Durable> = open_sim(&disk).unwrap();
                assert_eq!(contents(&store.snapshot()), expected, "{fault:?} on call {nth}");
                if !failed && disk.struck().is_none() && (fault != Fault::Short || nth > 60) {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn leases_are_renewed_while_the_disk_is_full() {
    let lease = "/coordination.k8s.io/leases/nodes/a";
    let renewal = |n: u32| vec![Op::PutLazily(draft(lease, &n.to_string()))];
    let disk = SimVfs::failing(Image::default(), 40, Fault::StaysFull);
    let store = open_sim(&disk).unwrap();
    let mut n = 0;
    while store.txn(vec![], vec![put("/core/pods/default/a", &n.to_string())]).await.is_ok() {
        n += 1;
    }
    for n in 0..1000 {
        store.txn(vec![], renewal(n)).await.unwrap();
    }
    assert!(!store.is_closed());
    let full = store.txn(vec![], vec![put("/core/pods/default/a", "full")]).await.unwrap_err();
    assert!(matches!(&full, Error::Io(source) if source.kind() == std::io::ErrorKind::StorageFull), "{full}");
    assert_eq!(store.snapshot().get(&key(lease)).unwrap().value()["value"], "999");

    disk.heal();
    store.txn(vec![], vec![put("/core/pods/default/a", "space")]).await.unwrap();
    drop(store);
    let store = open_sim(&SimVfs::new(disk.image())).unwrap();
    assert_eq!(store.snapshot().get(&key(lease)).unwrap().value()["value"], "999");
    assert_eq!(store.snapshot().get(&key("/core/pods/default/a")).unwrap().value()["value"], "space");
}
