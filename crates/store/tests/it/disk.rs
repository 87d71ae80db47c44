//! The store in a real directory: its lock, its restart, and what it costs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use api::key::Key;
use api::object::Draft;
use serde_json::json;
use store::durable::{Durable, OpenError, Options, open};
use store::seal::{Keyring, KeyringError, SystemRng};
use store::vfs::RealVfs;
use store::{Op, Store};

use crate::contract::Directory;
use crate::model::{KEYS, contents, put};

fn open_in(dir: &Path) -> Result<Arc<Durable>, OpenError> {
    open(Arc::new(RealVfs), Arc::new(SystemRng), Options::new(dir, Keyring::parse(KEYS).unwrap()))
}

#[tokio::test]
async fn a_store_is_opened_once_and_the_holder_is_named() {
    let directory = Directory::new();
    let dir = directory.0.join("store");
    let first = open_in(&dir).unwrap();
    let error = open_in(&dir).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is in use by process {}: stop it, or choose another data directory",
            dir.display(),
            std::process::id()
        )
    );
    drop(first);
    open_in(&dir).unwrap();
}

#[tokio::test]
async fn a_key_file_is_created_once() {
    use std::os::unix::fs::PermissionsExt;
    let directory = Directory::new();
    let path = directory.0.join("keys/store.key");
    let load = || Keyring::load_or_create(&RealVfs, &path, &SystemRng);
    let made = load().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(format!("{:?}", load().unwrap()), format!("{made:?}"));
    std::fs::write(&path, "nothing").unwrap();
    assert!(matches!(load(), Err(KeyringError::Line { line: 1 })));
}

/// A Pod as a Deployment makes it, about 4 kB of JSON.
fn pod(n: usize) -> Draft {
    let env: Vec<_> =
        (0..24).map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "a value of some length" })).collect();
    let name = format!("library-5d9c7b8f6d-{n:06}");
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("3f1c2b7e-0000-4000-8000-{n:012}"),
            "creationTimestamp": "2026-11-23T12:00:00Z", "generation": 1,
            "labels": { "app": "library", "pod-template-hash": "5d9c7b8f6d" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "library-5d9c7b8f6d",
                "uid": "6a6b1f6e-1111-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": { "containers": [
            { "name": "komga", "image": "gotson/komga:1.24.1", "env": env, "ports": [{ "containerPort": 25600 }] },
            { "name": "sidecar", "image": "busybox:1.36", "env": env, "command": ["sh", "-c", "sleep infinity"] },
        ] },
        "status": { "phase": "Running", "podIP": "10.244.0.7", "qosClass": "BestEffort" },
    });
    Draft::new(Key::parse(&format!("/core/pods/default/{name}")).unwrap(), object).unwrap()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_restart_brings_everything_back() {
    const PODS: usize = 4000;
    let directory = Directory::new();
    let dir = directory.0.join("store");
    let store = open_in(&dir).unwrap();
    let (body, before) = (pod(0).body().len(), resident_bytes());
    for chunk in (0..PODS).collect::<Vec<_>>().chunks(100) {
        store.txn(vec![], chunk.iter().map(|n| Op::Put(pod(*n))).collect()).await.unwrap();
    }
    // Other tests share the process: an indication, not a measurement.
    let each = resident_bytes().saturating_sub(before) / PODS;
    println!("{body} bytes of JSON take about {each} bytes of memory");
    let expected = contents(&store.snapshot());
    drop(store);

    let start = Instant::now();
    let store = open_in(&dir).unwrap();
    println!("{PODS} Pods are back after {:?}, {:?} each", start.elapsed(), start.elapsed() / PODS as u32);
    assert_eq!(contents(&store.snapshot()), expected);
    store.txn(vec![], vec![put("/core/pods/default/new", "1")]).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(open_in(&dir).unwrap().snapshot().range("", None).count(), PODS + 1);
}

/// Writes until it is killed, and prints what was acknowledged. A test only in name: the next one runs it as a process.
#[tokio::test]
async fn victim() {
    let Ok(dir) = std::env::var("CORACLE_STORE_VICTIM") else { return };
    let store = open_in(Path::new(&dir)).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0_u64.. {
                let name = format!("/core/pods/default/{writer}");
                let revision = store.txn(vec![], vec![put(&name, &n.to_string())]).await.unwrap().revision;
                println!("acknowledged {writer} {n} {revision}");
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let directory = Directory::new();
    let dir = directory.0.join("store");
    let mut last = 0;
    for round in 1..=8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "disk::victim", "--nocapture"])
            .env("CORACLE_STORE_VICTIM", &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = BTreeMap::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let Some(fields) = line.split_once("acknowledged ").map(|(_, fields)| fields) else { continue };
            let [writer, n, revision] = fields.split(' ').map(|f| f.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
            else {
                panic!("{line}")
            };
            assert!(revision > last, "revision {revision} was issued twice");
            acknowledged.insert(writer, (n, revision));
            if n == round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = open_in(&dir).unwrap();
        for (writer, (n, revision)) in acknowledged {
            let object =
                store.snapshot().get(&crate::model::key(&format!("/core/pods/default/{writer}"))).cloned().unwrap();
            let found: u64 = object.value()["value"].as_str().unwrap().parse().unwrap();
            assert!(
                found >= n && object.revision >= revision,
                "writer {writer}: {n} was acknowledged, {found} is there"
            );
        }
        last = store.snapshot().revision();
    }
}
