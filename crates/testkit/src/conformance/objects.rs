//! The last state of every object that tests make, kept while they run: a test's namespace is gone when its failure is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::web::Api;

/// What is kept.
const COLLECTIONS: &[&str] = &[
    "/api/v1/events",
    "/api/v1/persistentvolumeclaims",
    "/api/v1/pods",
    "/api/v1/replicationcontrollers",
    "/api/v1/services",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/statefulsets",
    "/apis/batch/v1/cronjobs",
    "/apis/batch/v1/jobs",
    "/apis/discovery.k8s.io/v1/endpointslices",
];
/// How soon a watch that ended begins again.
const AGAIN: Duration = Duration::from_millis(500);

/// Objects by namespace, then by `RESOURCE/NAME`.
type Kept = BTreeMap<String, BTreeMap<String, Value>>;

/// Keeps objects until it is dropped.
pub struct Keeper {
    kept: Arc<Mutex<Kept>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Keeper {
    pub fn start(api: &Api) -> Self {
        let (kept, ended) = (Arc::<Mutex<Kept>>::default(), Arc::<AtomicBool>::default());
        let keep = |collection: &&'static str| {
            let (api, kept, ended, collection) = (api.clone(), Arc::clone(&kept), Arc::clone(&ended), *collection);
            std::thread::spawn(move || {
                let resource = collection.rsplit_once('/').map_or(collection, |(_, resource)| resource);
                while !ended.load(Ordering::Relaxed) {
                    // A watch ends by itself after a while, and a kind that is not served has none.
                    let _ = api.watch_until(collection, |object| {
                        put(&mut lock(&kept), resource, object.clone());
                        ended.load(Ordering::Relaxed)
                    });
                    std::thread::sleep(AGAIN);
                }
            })
        };
        let threads = COLLECTIONS.iter().map(keep).collect();
        Self { kept, ended, threads }
    }

    /// The objects of some namespaces, by `RESOURCE/NAME`.
    pub fn of(&self, namespaces: &[&str]) -> BTreeMap<String, Value> {
        let kept = lock(&self.kept);
        namespaces
            .iter()
            .filter_map(|namespace| kept.get(*namespace))
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// Ends; the server must be gone, or its next events are waited for.
    pub fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A keeper that panicked has kept what it has.
            let _ = thread.join();
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn put(kept: &mut Kept, resource: &str, mut object: Value) {
    let meta = &mut object["metadata"];
    if let Some(meta) = meta.as_object_mut() {
        meta.remove("managedFields");
    }
    let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
    let key = format!("{resource}/{}", text("name"));
    kept.entry(text("namespace")).or_default().insert(key, object);
}

/// What may explain a failure: containers that wait or ended badly, pods that found no node, warnings. Each once, at most `most`.
pub fn causes(objects: &BTreeMap<String, Value>, most: usize) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut add = |text: String| {
        if !found.contains(&text) {
            found.push(text);
        }
    };
    for (key, object) in objects {
        if key.starts_with("pods/") {
            let status = &object["status"];
            for field in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
                status[field].as_array().into_iter().flatten().filter_map(|c| of_container(key, c)).for_each(&mut add);
            }
            for condition in status["conditions"].as_array().into_iter().flatten() {
                if condition["type"] == "PodScheduled" && condition["status"] == "False" {
                    add(format!("{key}: {}", words(&[&condition["reason"], &condition["message"]])));
                }
            }
            if status["phase"] == "Failed" {
                add(format!("{key}: {}", words(&[&status["phase"], &status["reason"], &status["message"]])));
            }
        }
    }
    for (key, object) in objects {
        if key.starts_with("events/") && object["type"] == "Warning" {
            let about = words(&[&object["involvedObject"]["kind"], &object["involvedObject"]["name"]]);
            let message = object["message"].as_str().or(object["note"].as_str()).unwrap_or_default();
            add(format!("{about}: {} {message}", object["reason"].as_str().unwrap_or_default()));
        }
    }
    found.truncate(most);
    found
}

/// A container that waits for more than its turn, or that ended with an error.
fn of_container(pod: &str, container: &Value) -> Option<String> {
    let name = container["name"].as_str().unwrap_or_default();
    let waiting = &container["state"]["waiting"];
    let ended = [&container["state"]["terminated"], &container["lastState"]["terminated"]];
    if waiting.is_object() && !matches!(waiting["reason"].as_str(), Some("ContainerCreating" | "PodInitializing")) {
        return Some(format!("{pod} {name}: {}", words(&[&waiting["reason"], &waiting["message"]])));
    }
    let bad = ended.into_iter().find(|ended| ended["exitCode"].as_i64().is_some_and(|code| code != 0))?;
    Some(format!("{pod} {name}: exit code {} {}", bad["exitCode"], words(&[&bad["reason"], &bad["message"]])))
}

fn words(values: &[&Value]) -> String {
    values.iter().filter_map(|value| value.as_str()).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn causes_are_waiting_containers_unscheduled_pods_and_warnings() {
        let mut kept = Kept::new();
        for (resource, object) in [
            (
                "pods",
                json!({"metadata": {"name": "a", "namespace": "n", "managedFields": []}, "status": {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [
                    {"name": "c", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
                    {"name": "d", "state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"name": "e", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}},
                    {"name": "f", "state": {"terminated": {"exitCode": 0}}}]}}),
            ),
            (
                "pods",
                json!({"metadata": {"name": "b", "namespace": "n"}, "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}}),
            ),
            (
                "events",
                json!({"metadata": {"name": "a.1", "namespace": "n"}, "type": "Warning", "reason": "Failed",
                "message": "mount", "involvedObject": {"kind": "Pod", "name": "a"}}),
            ),
            ("events", json!({"metadata": {"name": "a.2", "namespace": "n"}, "type": "Normal", "reason": "Pulled"})),
        ] {
            put(&mut kept, resource, object);
        }
        let expected = [
            "pods/a c: ErrImagePull no such image",
            "pods/a e: exit code 2 Error",
            "pods/b: Unschedulable 0/1 nodes",
            "Pod a: Failed mount",
        ];
        assert_eq!(causes(&kept["n"], 9), expected);
        assert_eq!(causes(&kept["n"], 1), expected[..1]);
        assert!(kept["n"]["pods/a"]["metadata"].get("managedFields").is_none());
    }
}
