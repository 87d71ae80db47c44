//! Lists, changes and failures in a written order.

use std::collections::VecDeque;

use api::object::Draft;
use serde_json::json;

use super::*;
use crate::{BoxFuture, Call, Resource, Transport, Watched};

/// What the server does next; each list is followed by what its watch reports.
enum Step {
    List(u64, Vec<Arc<Object>>),
    Fail(Status),
    Changes(u64, Vec<Change>),
}

struct Script(Arc<Mutex<VecDeque<Step>>>);

impl Transport for Script {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>> {
        Box::pin(async { Err(Status::unavailable("scripted")) })
    }

    fn list_watch(&self, _: Scope) -> BoxFuture<'_, Result<Watched, Status>> {
        let step = lock(&self.0).pop_front();
        Box::pin(async move {
            match step {
                Some(Step::List(revision, objects)) => {
                    let watch = ScriptedWatch { steps: self.0.clone(), revision };
                    Ok((Listing { revision, objects }, Box::new(watch) as Box<dyn Watch>))
                }
                Some(Step::Fail(error)) => Err(error),
                Some(Step::Changes(..)) => panic!("the script lists first"),
                None => std::future::pending().await,
            }
        })
    }
}

struct ScriptedWatch {
    steps: Arc<Mutex<VecDeque<Step>>>,
    revision: u64,
}

impl Watch for ScriptedWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>> {
        let step = lock(&self.steps).pop_front();
        Box::pin(async move {
            match step {
                Some(Step::Changes(revision, changes)) => {
                    self.revision = revision;
                    Ok(changes)
                }
                Some(Step::Fail(error)) => Err(error),
                Some(Step::List(..)) => panic!("the script's watch goes on"),
                None => std::future::pending().await,
            }
        })
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}

const PODS: Resource = Resource::new("", "v1", "pods");

fn pod(name: &str, uid: &str, revision: u64) -> Arc<Object> {
    let key = Key::new(&PODS.resource, "web", name);
    let value = json!({"metadata": {"name": name, "namespace": "web", "uid": uid,
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "owner"}]}});
    Draft::new(key, value).unwrap().commit(revision)
}

fn start(steps: Vec<Step>) -> (Informers, Informer) {
    let client = Client::new(Arc::new(Script(Arc::new(Mutex::new(steps.into())))));
    let mut informers = Informers::new(&CancellationToken::new());
    let informer = informers.start(&client, PODS.everywhere(), &[]);
    (informers, informer)
}

/// `name old→new` by uid.
fn told(deltas: &[Delta]) -> Vec<String> {
    let uid = |object: &Option<Arc<Object>>| object.as_ref().map_or("-".to_owned(), |object| object.meta().uid.clone());
    deltas.iter().map(|delta| format!("{} {}→{}", delta.key.name(), uid(&delta.old), uid(&delta.new))).collect()
}

#[tokio::test(start_paused = true)]
async fn after_a_compaction_the_new_list_tells_what_was_missed() {
    let (_informers, informer) = start(vec![
        Step::List(10, vec![pod("a", "1", 8), pod("b", "2", 9), pod("c", "3", 10)]),
        Step::Fail(Status::expired("too old")),
        Step::List(20, vec![pod("a", "1", 8), pod("b", "2", 15), pod("c", "4", 18), pod("d", "5", 20)]),
    ]);
    let mut changes = informer.subscribe();
    informer.wait_for(10).await.unwrap();
    assert_eq!(told(&changes.next().await), ["a -→1", "b -→2", "c -→3"]);
    let view = informer.wait_for(20).await.unwrap();
    assert_eq!(told(&changes.next().await), ["b 2→2", "c 3→4", "d -→5"], "a is unchanged, c was replaced");
    assert_eq!((view.len(), view.owned_by("owner").count()), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn what_a_list_does_not_show_any_more_is_gone() {
    let (_informers, informer) = start(vec![
        Step::List(10, vec![pod("a", "1", 8)]),
        Step::Fail(Status::unavailable("cut")),
        Step::List(20, vec![]),
    ]);
    let mut changes = informer.subscribe();
    informer.wait_for(10).await.unwrap();
    assert_eq!(told(&changes.next().await), ["a -→1"]);
    let view = informer.wait_for(20).await.unwrap();
    assert_eq!(told(&changes.next().await), ["a 1→-"]);
    assert_eq!(view.owned_by("owner").count(), 0, "the indexes forget it too");
}

#[tokio::test(start_paused = true)]
async fn failures_are_spaced_out() {
    let fail = || Step::Fail(Status::unavailable("down"));
    let (_informers, informer) = start(vec![fail(), fail(), fail(), Step::List(1, vec![])]);
    let start = tokio::time::Instant::now();
    informer.synced().await.unwrap();
    assert_eq!(start.elapsed().as_millis(), 100 + 200 + 400);
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_gets_one_delta_per_object() {
    let (first, second) = (pod("a", "1", 11), pod("a", "1", 12));
    let (_informers, informer) = start(vec![
        Step::List(10, vec![pod("a", "1", 8)]),
        Step::Changes(11, vec![Change::Modified { old: pod("a", "1", 8), new: first.clone() }]),
        Step::Changes(12, vec![Change::Modified { old: first, new: second.clone() }]),
        Step::Changes(
            14,
            vec![Change::Added(pod("b", "2", 13)), Change::Deleted { last: pod("b", "2", 13), revision: 14 }],
        ),
    ]);
    let mut changes = informer.subscribe();
    informer.wait_for(14).await.unwrap();
    let deltas = changes.next().await;
    assert_eq!(told(&deltas), ["a -→1"], "b came and went unseen");
    assert_eq!(deltas[0].new.as_ref().unwrap().revision, 12);
}

#[tokio::test(start_paused = true)]
async fn a_view_moves_on_without_changes() {
    let (_informers, informer) = start(vec![Step::List(10, vec![]), Step::Changes(15, vec![])]);
    assert_eq!(informer.wait_for(15).await.unwrap().revision(), 15);
}

/// A watch that knows better than it says where it is.
struct Asleep;

impl Watch for Asleep {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>> {
        Box::pin(std::future::pending())
    }

    fn revision(&self) -> u64 {
        10
    }

    fn progress(&self) -> Progress {
        Arc::new(|revision| revision + 5)
    }
}

impl Transport for Asleep {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>> {
        Box::pin(async { Err(Status::unavailable("asleep")) })
    }

    fn list_watch(&self, _: Scope) -> BoxFuture<'_, Result<Watched, Status>> {
        Box::pin(async { Ok((Listing { revision: 10, objects: Vec::new() }, Box::new(Asleep) as Box<dyn Watch>)) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_view_moves_on_without_being_told() {
    let mut informers = Informers::new(&CancellationToken::new());
    let informer = informers.start(&Client::new(Arc::new(Asleep)), PODS.everywhere(), &[]);
    assert_eq!(informer.wait_for(15).await.unwrap().revision(), 15);
    assert_eq!(informer.view().revision(), 15);
}
