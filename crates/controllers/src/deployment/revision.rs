//! Template hashes, names and the annotations by which Deployments number and size their ReplicaSets.
//!
//! Source: kubernetes `pkg/controller/deployment/util/deployment_util.go`, `pkg/controller/controller_utils.go`
//! (`ComputeHash`), apimachinery `pkg/util/rand/rand.go` (`SafeEncodeString`). Upstream hashes a dump of Go's memory; we hash
//! the template's JSON. Nothing depends on the value: ReplicaSets are found by their template.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::limits::{max_surge, replicas};
use crate::claim::controller_reference;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// The label by which the pods of one template are told apart.
pub const HASH: &str = "pod-template-hash";
/// Annotations of the Deployment that its ReplicaSets do not get.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];
/// The longest revision history, in bytes.
const HISTORY_MAX: usize = 2000;
/// The longest name of an object.
const NAME_MAX: usize = 253;

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref().and_then(|all| all.get(key))
}

/// The revision of a ReplicaSet; 0 without one, `None` when it is no number.
pub fn of(meta: &ObjectMeta) -> Option<i64> {
    annotation(meta, REVISION).map_or(Some(0), |text| text.parse().ok())
}

/// A count in an annotation.
pub fn count(meta: &ObjectMeta, key: &str) -> Option<i32> {
    annotation(meta, key).and_then(|text| text.parse().ok()).filter(|count| *count >= 0)
}

/// Whether two templates are the same but for the hash label.
pub fn same_template(one: &PodTemplateSpec, other: &PodTemplateSpec) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        // The API server may fill it in on one and not on the other; it means nothing in a template.
        meta.creation_timestamp = None;
        template
    };
    without_hash(one) == without_hash(other)
}

/// FNV-1a of the template and the collisions so far, in letters that spell no words.
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let json = serde_json::to_vec(template).expect("a pod template has only string keys");
    let collisions = collisions.map(|count| u64::from(count.unsigned_abs()).to_le_bytes());
    let bytes = json.iter().copied().chain(collisions.into_iter().flatten());
    let sum = bytes.fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    sum.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// The ReplicaSet for the Deployment's template, not sized yet.
pub fn new_set(deployment: &Deployment, collisions: Option<i32>, revision: i64) -> ReplicaSet {
    let mut template = deployment.spec.template.clone();
    let hash = hash(&template, collisions);
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let kept = name.len().min(NAME_MAX - 1 - hash.len());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", &name[..kept])),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    sync_new_set(deployment, &mut set, revision);
    set_sizes(deployment, &mut set);
    set
}

/// Gives the new ReplicaSet what it takes over from the Deployment, and its revision.
pub fn sync_new_set(deployment: &Deployment, set: &mut ReplicaSet, newest: i64) {
    set.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned();
    let Some(number) = old.as_deref().map_or(Some(0), |text| text.parse::<i64>().ok()) else { return };
    if number >= newest {
        return;
    }
    annotations.insert(REVISION.to_owned(), newest.to_string());
    if let Some(old) = old {
        remember(annotations, &old);
    }
}

/// Appends a revision that this ReplicaSet had before it was rolled back to, dropping the oldest when there are too many.
fn remember(annotations: &mut BTreeMap<String, String>, old: &str) {
    let history = annotations.get(HISTORY).cloned().unwrap_or_default();
    let mut revisions: Vec<&str> = history.split(',').filter(|part| !part.is_empty()).collect();
    revisions.push(old);
    let mut start = 0;
    let length = |revisions: &[&str]| revisions.iter().map(|part| part.len() + 1).sum::<usize>().saturating_sub(1);
    while length(&revisions[start..]) > HISTORY_MAX && start < revisions.len() {
        start += 1;
    }
    if start < revisions.len() {
        annotations.insert(HISTORY.to_owned(), revisions[start..].join(","));
    }
}

/// Records the sizes by which proportional scaling goes; returns whether they changed.
pub fn set_sizes(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let wanted = replicas(deployment);
    let sizes = [(DESIRED, wanted), (MAXIMUM, wanted.saturating_add(max_surge(deployment)))];
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, size) in sizes {
        changed |= annotations.insert(key.to_owned(), size.to_string()) != Some(size.to_string());
    }
    changed
}
