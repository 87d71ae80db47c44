//! ReplicaSets, and ReplicationControllers before them: as many pods as wanted, by creating and deleting them.
//!
//! Source: kubernetes `pkg/controller/replicaset/{replica_set,replica_set_utils}.go`, `pkg/controller/replication`.

use std::marker::PhantomData;
use std::time::Duration;

use api::key::{GroupResource, Key};
use client::Resource;
use client::events::reference_to;
use client::informer::Delta;
use client::typed::Typed;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use serde_json::json;

use crate::action::{Action, Deletion, Note, Notes};
use crate::claim::{claim_all, controller_of, controller_reference, is_controlled_by, selector};
use crate::indexes::orphans;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};
use crate::{pod, pod_rank};

/// Pods that one run creates or deletes at most. Source: `BurstReplicas`.
pub const BURST: usize = 500;

/// A ReplicaSet, or what is one but for its name and the form of its selector.
pub trait Set: Typed + Clone + PartialEq {
    /// The component that looks after its kind.
    const CONTROLLER: &'static str;

    fn as_set(&self) -> ReplicaSet;

    /// The same with another status.
    fn reporting(&self, status: ReplicaSetStatus) -> Self;
}

impl Set for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn as_set(&self) -> ReplicaSet {
        self.clone()
    }

    fn reporting(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Set for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn as_set(&self) -> ReplicaSet {
        let spec = self.spec.clone().unwrap_or_default();
        // Without one it selects nothing, where the selector of a set would select everything.
        let selector = spec.selector.filter(|labels| !labels.is_empty());
        let nothing =
            || LabelSelector { match_expressions: Some(vec![Default::default()]), ..LabelSelector::default() };
        let condition = |condition: ReplicationControllerCondition| ReplicaSetCondition {
            last_transition_time: condition.last_transition_time,
            message: condition.message,
            reason: condition.reason,
            status: Some(condition.status),
            type_: Some(condition.type_),
        };
        ReplicaSet {
            metadata: self.metadata.clone(),
            spec: ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: selector.map_or_else(nothing, |labels| LabelSelector {
                    match_labels: Some(labels),
                    ..LabelSelector::default()
                }),
                template: spec.template,
            },
            status: self.status.clone().map(|status| ReplicaSetStatus {
                available_replicas: status.available_replicas,
                conditions: status.conditions.map(|list| list.into_iter().map(condition).collect()),
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
                terminating_replicas: None,
            }),
        }
    }

    fn reporting(&self, status: ReplicaSetStatus) -> Self {
        let condition = |condition: ReplicaSetCondition| ReplicationControllerCondition {
            last_transition_time: condition.last_transition_time,
            message: condition.message,
            reason: condition.reason,
            status: condition.status.unwrap_or_default(),
            type_: condition.type_.unwrap_or_default(),
        };
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|list| list.into_iter().map(condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

/// What the decision about one set rests on.
pub struct Observed<S = ReplicaSet> {
    pub set: S,
    /// The pods in its namespace that name it as an owner, and those without a controller.
    pub pods: Vec<Pod>,
    /// The pods of all sets with the same controller: to spread deletions over nodes.
    pub related: Vec<Pod>,
    /// Why creating or deleting failed the last time.
    pub failure: Option<String>,
    pub now: Timestamp,
}

/// Adopts and releases, creates or deletes, and reports.
pub fn reconcile<S: Set>(observed: &Observed<S>) -> Vec<Action> {
    let Observed { set: owner, pods, now, .. } = observed;
    let set = &owner.as_set();
    let selector = selector(&set.spec.selector);
    if selector.is_nothing() {
        return Vec::new();
    }
    let active = pods.iter().filter(|pod| pod::is_active(pod)).cloned().collect();
    let (active, mut actions) = claim_all(owner, &selector, active);
    let terminating = pods.iter().filter(|pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        pod::is_terminating(pod) && is_controlled_by(&pod.metadata, &set.metadata) && selector.matches(&labels)
    });
    let status = status(observed, set, &active, terminating.count());
    let replicate =
        || if set.metadata.deletion_timestamp.is_none() { replicate(observed, set, &active) } else { Vec::new() };
    let reporting = owner.reporting(status.clone());
    let report = (reporting != *owner).then(|| Action::Update {
        of: Resource::of::<S>(),
        subresource: Some("status"),
        object: serde_json::to_value(reporting).unwrap_or_default(),
    });
    // Pods come first, because somebody waits for them; but what failed before may fail again, and must be reported.
    if observed.failure.is_some() {
        actions.extend(report);
        actions.extend(replicate());
    } else {
        actions.extend(replicate());
        actions.extend(report);
    }
    let min_ready = min_ready(set);
    if !min_ready.is_zero() && status.ready_replicas != status.available_replicas {
        let next = active.iter().filter_map(|pod| pod::available_in(pod, min_ready, *now)).min();
        actions.push(Action::RunAgain { after: next.unwrap_or(min_ready) });
    }
    actions
}

fn min_ready(set: &ReplicaSet) -> Duration {
    Duration::from_secs(set.spec.min_ready_seconds.unwrap_or(0).try_into().unwrap_or(0))
}

fn wanted(set: &ReplicaSet) -> usize {
    set.spec.replicas.unwrap_or(1).try_into().unwrap_or(0)
}

fn replicate<S: Set>(observed: &Observed<S>, set: &ReplicaSet, active: &[Pod]) -> Vec<Action> {
    let (have, want) = (active.len(), wanted(set));
    let about = reference_to(&observed.set);
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    if have < want {
        let Some(template) = &set.spec.template else { return Vec::new() };
        let notes = Notes::new(
            about,
            Some(Note::normal("SuccessfulCreate", "Created pod: {}")),
            Some(Note::warning("FailedCreate", "Error creating: {}")),
        );
        let copies = (want - have).min(BURST);
        let object = json!(pod_from(template, &observed.set));
        return vec![Action::Create { of: Resource::of::<Pod>(), namespace, object, copies, notes }];
    }
    let surplus = (have - want).min(BURST);
    let delete = |pod: &Pod| Action::Delete {
        of: Resource::of::<Pod>(),
        namespace: namespace.clone(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        how: Deletion::default(),
        notes: Notes::new(
            about.clone(),
            Some(Note::normal("SuccessfulDelete", "Deleted pod: {}")),
            Some(Note::warning("FailedDelete", "Error deleting: {}")),
        ),
    };
    pods_to_delete(active, &observed.related, surplus, observed.now).into_iter().map(delete).collect()
}

/// Returns the `surplus` pods to delete, worst first.
///
/// Source: `replica_set.go`, `getPodsToDelete`.
pub fn pods_to_delete<'a>(active: &'a [Pod], related: &[Pod], surplus: usize, now: Timestamp) -> Vec<&'a Pod> {
    let mut ranked: Vec<&Pod> = active.iter().collect();
    if surplus < active.len() {
        let on_node =
            |node: &str| related.iter().filter(|pod| pod::is_active(pod) && pod::node_name(pod) == node).count();
        ranked.sort_by_cached_key(|pod| pod_rank::deletion_rank(pod, on_node(pod::node_name(pod)), now));
    }
    ranked.truncate(surplus);
    ranked
}

fn pod_from(template: &PodTemplateSpec, set: &impl Set) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let owner = set.metadata();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name.as_deref().unwrap_or_default())),
            namespace: owner.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

fn status<S: Set>(observed: &Observed<S>, set: &ReplicaSet, active: &[Pod], terminating: usize) -> ReplicaSetStatus {
    let template = set.spec.template.as_ref();
    let template_labels = template.and_then(|template| template.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let fully_labeled = |pod: &&Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let available = |pod: &&Pod| pod::is_available(pod, min_ready(set), observed.now);
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    // Counts of nothing are left out, as upstream's `omitempty` does.
    let some = |n: usize| (n > 0).then(|| count(n));
    ReplicaSetStatus {
        available_replicas: some(active.iter().filter(available).count()),
        conditions: conditions(set, observed.failure.as_ref(), active.len(), observed.now),
        fully_labeled_replicas: some(active.iter().filter(fully_labeled).count()),
        observed_generation: set.metadata.generation,
        ready_replicas: some(active.iter().filter(|pod| pod::is_ready(pod)).count()),
        replicas: count(active.len()),
        terminating_replicas: Some(count(terminating)),
    }
}

/// The conditions with `ReplicaFailure` added, kept or removed.
fn conditions(
    set: &ReplicaSet,
    failure: Option<&String>,
    have: usize,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let current = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let exists = current.iter().any(|condition| condition.type_.as_deref() == Some(FAILURE));
    let want = wanted(set);
    let conditions = match failure {
        Some(_) if exists => current,
        Some(message) if have != want => {
            let failed = ReplicaSetCondition {
                type_: Some(FAILURE.to_owned()),
                status: Some("True".to_owned()),
                reason: Some(if have < want { "FailedCreate" } else { "FailedDelete" }.to_owned()),
                message: Some(message.clone()),
                last_transition_time: Some(Time(now)),
            };
            current.into_iter().chain([failed]).collect()
        }
        Some(_) | None => {
            current.into_iter().filter(|condition| condition.type_.as_deref() != Some(FAILURE)).collect::<Vec<_>>()
        }
    };
    (!conditions.is_empty()).then_some(conditions)
}

/// Observes sets of one kind and their pods for the shell.
pub struct Sets<S>(PhantomData<fn() -> S>);

impl<S> Default for Sets<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<S: Set + 'static> Controller for Sets<S> {
    fn name(&self) -> &'static str {
        S::CONTROLLER
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![Resource::of::<S>().resource, Resource::of::<Pod>().resource]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let of = Resource::of::<S>().resource;
        if delta.key.group_resource() == of {
            return vec![delta.key.clone()];
        }
        let mut keys = Vec::new();
        for state in delta.states() {
            let controller = state.meta().controller();
            if let Some(owner) = controller.filter(|owner| owner.kind == S::KIND) {
                keys.push(Key::new(&of, &state.meta().namespace, &owner.name));
            }
        }
        if let Some(orphan) = delta.new.as_ref().filter(|pod| pod.meta().controller().is_none()) {
            let sets = views.of::<S>().in_namespace(&orphan.meta().namespace);
            let wanting = sets.filter(|set| {
                let set = decode::<S>(set);
                set.is_some_and(|set| selector(&set.as_set().spec.selector).matches(&orphan.meta().labels))
            });
            keys.extend(wanting.map(|set| set.key().clone()));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(owner) = run.views.get::<S>(run.key) else { return Vec::new() };
        let set = owner.as_set();
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let pods = run.views.of::<Pod>();
        let selector = selector(&set.spec.selector);
        let lost = orphans(pods, run.key.namespace()).filter(|pod| selector.matches(&pod.meta().labels));
        let own: Vec<Pod> = pods.owned_by(&uid).chain(lost).filter_map(|pod| decode(pod)).collect();
        let surplus = own.iter().filter(|pod| pod::is_active(pod)).count() > wanted(&set);
        let related = if surplus { related_pods::<S>(&set.metadata, run.views) } else { Vec::new() };
        reconcile(&Observed { set: owner, pods: own, related, failure: run.failure.map(str::to_owned), now: run.now })
    }
}

/// The pods of every set that has the same controller as this one, itself included.
fn related_pods<S: Set>(set: &ObjectMeta, views: &Views) -> Vec<Pod> {
    let Some(owner) = controller_of(set) else {
        return views
            .of::<Pod>()
            .owned_by(set.uid.as_deref().unwrap_or_default())
            .filter_map(|pod| decode(pod))
            .collect();
    };
    let siblings = views.of::<S>().owned_by(&owner.uid);
    siblings.flat_map(|sibling| views.of::<Pod>().owned_by(&sibling.meta().uid)).filter_map(|pod| decode(pod)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, from_yaml, show};
    use expect_test::{Expect, expect};

    /// One pod per word: its name, then `!` ready, `-` not scheduled, `~` being deleted, `x` failed, `?` an orphan,
    /// `=` of another owner, `%` with other labels.
    fn pods(words: &str) -> Vec<Pod> {
        words.split_whitespace().map(pod).collect()
    }

    fn pod(word: &str) -> Pod {
        let name = word.trim_end_matches(['!', '-', '~', 'x', '?', '=', '%']);
        let has = |mark: char| word[name.len()..].contains(mark);
        let mut pod: Pod = from_yaml(&format!(
            "{{metadata: {{name: {name}, namespace: web, uid: u-{name}, labels: {{app: {}}}}}, spec: {{containers: []}}, \
             status: {{phase: {}}}}}",
            if has('%') { "other" } else { "web" },
            if has('x') { "Failed" } else { "Running" },
        ));
        pod.metadata.creation_timestamp = Some(Time(at(0)));
        if has('!') {
            let ready = from_yaml("{type: Ready, status: 'True', lastTransitionTime: '2027-01-15T08:00:00Z'}");
            pod.status.get_or_insert_default().conditions = Some(vec![ready]);
        }
        if !has('-') {
            pod.spec.get_or_insert_default().node_name = Some("node".to_owned());
        }
        if has('~') {
            pod.metadata.deletion_timestamp = Some(Time(at(0)));
        }
        if !has('?') {
            let uid = if has('=') { "u-other" } else { "u-set" };
            let owner = format!("{{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: {uid}, controller: true}}");
            pod.metadata.owner_references = Some(vec![from_yaml(&owner)]);
        }
        pod
    }

    fn set(replicas: i32) -> ReplicaSet {
        from_yaml(&format!(
            "{{metadata: {{name: web, namespace: web, uid: u-set, generation: 1}}, spec: {{replicas: {replicas}, \
             selector: {{matchLabels: {{app: web}}}}, \
             template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: []}}}}}}}}"
        ))
    }

    fn observed(set: ReplicaSet, words: &str) -> Observed {
        Observed { set, pods: pods(words), related: Vec::new(), failure: None, now: at(100) }
    }

    fn check(replicas: i32, words: &str, expected: Expect) {
        expected.assert_eq(&show(&reconcile(&observed(set(replicas), words))));
    }

    #[test]
    fn creates_the_pods_that_are_missing() {
        check(
            3,
            "a!",
            expect![[r#"
                create 2 pods web-
                status replicasets.apps web {"availableReplicas":1,"fullyLabeledReplicas":1,"observedGeneration":1,"readyReplicas":1,"replicas":1,"terminatingReplicas":0}"#]],
        );
    }

    #[test]
    fn deletes_unready_pods_first() {
        check(
            1,
            "a! b",
            expect![[r#"
                delete pods b
                status replicasets.apps web {"availableReplicas":1,"fullyLabeledReplicas":2,"observedGeneration":1,"readyReplicas":1,"replicas":2,"terminatingReplicas":0}"#]],
        );
    }

    #[test]
    fn deletes_pods_without_a_node_before_all_others() {
        check(
            1,
            "a b-",
            expect![[r#"
                delete pods b
                status replicasets.apps web {"fullyLabeledReplicas":2,"observedGeneration":1,"replicas":2,"terminatingReplicas":0}"#]],
        );
    }

    #[test]
    fn replaces_pods_that_failed_or_are_on_their_way_out() {
        check(
            2,
            "a! bx c!~",
            expect![[r#"
                create 1 pods web-
                status replicasets.apps web {"availableReplicas":1,"fullyLabeledReplicas":1,"observedGeneration":1,"readyReplicas":1,"replicas":1,"terminatingReplicas":1}"#]],
        );
    }

    #[test]
    fn adopts_orphans_releases_strangers_and_leaves_others_alone() {
        check(
            1,
            "a? b% c=",
            expect![[r#"
                patch pods a {"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicaSet","name":"web","uid":"u-set"}],"uid":"u-a"}}
                patch pods b {"metadata":{"ownerReferences":[{"$patch":"delete","uid":"u-set"}],"uid":"u-b"}}
                status replicasets.apps web {"fullyLabeledReplicas":1,"observedGeneration":1,"replicas":1,"terminatingReplicas":0}"#]],
        );
    }

    #[test]
    fn creates_at_most_500_at_once() {
        check(
            10_000,
            "",
            expect![[r#"
                create 500 pods web-
                status replicasets.apps web {"observedGeneration":1,"replicas":0,"terminatingReplicas":0}"#]],
        );
    }

    #[test]
    fn does_nothing_but_report_while_it_is_being_deleted() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(Time(at(0)));
        let actions = reconcile(&observed(set, "a? b"));
        expect![[r#"status replicasets.apps web {"fullyLabeledReplicas":1,"observedGeneration":1,"replicas":1,"terminatingReplicas":0}"#]]
            .assert_eq(&show(&actions));
    }

    #[test]
    fn is_quiet_once_the_status_says_so() {
        let mut set = set(1);
        set.status =
            Some(from_yaml("{replicas: 1, fullyLabeledReplicas: 1, observedGeneration: 1, terminatingReplicas: 0}"));
        assert_eq!(reconcile(&observed(set, "a")), Vec::new());
    }

    #[test]
    fn reports_why_pods_cannot_be_created_before_it_tries_again() {
        let mut seen = observed(set(1), "");
        seen.failure = Some("no quota".to_owned());
        expect![[r#"
            status replicasets.apps web {"conditions":[{"lastTransitionTime":"2027-01-15T08:01:40Z","message":"no quota","reason":"FailedCreate","status":"True","type":"ReplicaFailure"}],"observedGeneration":1,"replicas":0,"terminatingReplicas":0}
            create 1 pods web-"#]]
        .assert_eq(&show(&reconcile(&seen)));
    }

    #[test]
    fn looks_again_when_a_ready_pod_becomes_available() {
        let mut set = set(1);
        set.spec.min_ready_seconds = Some(130);
        set.status = Some(from_yaml(
            "{replicas: 1, fullyLabeledReplicas: 1, readyReplicas: 1, observedGeneration: 1, terminatingReplicas: 0}",
        ));
        expect!["run again after 30s"].assert_eq(&show(&reconcile(&observed(set, "a!"))));
    }

    #[test]
    fn a_replication_controller_is_a_set_by_another_name() {
        let controller: ReplicationController = from_yaml(
            "{metadata: {name: web, namespace: web, uid: u-set, generation: 1}, spec: {replicas: 2, selector: {app: web}, \
             template: {metadata: {labels: {app: web}}, spec: {containers: []}}}}",
        );
        let seen = |set: ReplicationController, words: &str| Observed {
            set,
            pods: pods(words),
            related: Vec::new(),
            failure: None,
            now: at(100),
        };
        expect![[r#"
            patch pods a {"metadata":{"ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"ReplicationController","name":"web","uid":"u-set"}],"uid":"u-a"}}
            create 1 pods web-
            status replicationcontrollers web {"fullyLabeledReplicas":1,"observedGeneration":1,"replicas":1}"#]]
        .assert_eq(&show(&reconcile(&seen(controller.clone(), "a?"))));
        let told = ReplicationController {
            status: Some(from_yaml("{replicas: 2, fullyLabeledReplicas: 2, observedGeneration: 1}")),
            ..controller.clone()
        };
        assert_eq!(reconcile(&seen(told, "a b")), Vec::new(), "what is right is left alone");
        let mut blind = controller;
        blind.spec.get_or_insert_default().selector = None;
        assert_eq!(reconcile(&seen(blind, "a?")), Vec::new(), "without a selector it has no pods");
    }

    #[test]
    fn spreads_deletions_over_nodes_and_minds_the_cost() {
        let mut crowd = pods("a! b! c!");
        crowd[2].spec.get_or_insert_default().node_name = Some("lonely".to_owned());
        let names = |pods: Vec<&Pod>| pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(pods_to_delete(&crowd, &crowd, 2, at(100))), ["a", "b"]);
        let cost = [("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-1".to_owned())];
        crowd[2].metadata.annotations = Some(cost.into());
        assert_eq!(names(pods_to_delete(&crowd, &crowd, 1, at(100))), ["c"]);
    }
}
