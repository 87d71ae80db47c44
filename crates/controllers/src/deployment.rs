//! Deployments: rolling a pod template out over ReplicaSets.
//!
//! One pass decides on scaling, on the status and on the history together; each ReplicaSet is written at most once in it.
//! Source: kubernetes `pkg/controller/deployment/{deployment_controller,sync,rolling,recreate,progress}.go`.

use api::key::{GroupResource, Key};
use client::Resource;
use client::events::reference_to;
use client::informer::Delta;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use crate::action::{Action, Deletion, Note, Notes};
use crate::claim::{claim_all, controller_of, selector};
use crate::indexes::orphans;
use crate::pod;
use crate::shell::{Controller, Run};
use crate::views::{Views, decode};

pub mod limits;
pub mod revision;
pub mod rollout;
pub mod status;
#[cfg(test)]
mod tests;

use limits::replicas;
use rollout::{Rollout, replicas_of};

/// What the decision about one Deployment rests on.
pub struct Observed {
    pub deployment: Deployment,
    /// The ReplicaSets that name it as an owner, and those without a controller that it selects.
    pub sets: Vec<ReplicaSet>,
    /// Whether a pod of a ReplicaSet with this uid has not ended: asked for Recreate.
    pub running: Vec<String>,
    /// The name of a ReplicaSet that another owner, or another template, has taken.
    pub taken: Vec<String>,
    /// Why creating the new ReplicaSet failed the last time.
    pub failure: Option<String>,
    pub now: Timestamp,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let Observed { deployment, now, .. } = observed;
    if deployment.spec.selector == LabelSelector::default() {
        return selects_all(deployment);
    }
    let (sets, mut actions) = claim_all(deployment, &selector(&deployment.spec.selector), observed.sets.clone());
    let mut rollout = Rollout::new(deployment, sets);
    let mut current = deployment.status.clone().unwrap_or_default();
    let is_deleting = deployment.metadata.deletion_timestamp.is_some();
    let is_paused = deployment.spec.paused == Some(true);
    if !is_deleting {
        status::note_pause(deployment, &mut current, *now);
    }
    let max_old = rollout.max_old_revision();
    if let Some(new) = rollout.new_set_mut() {
        revision::sync_new_set(deployment, new, max_old + 1);
        status::note_existing_set(deployment, &mut current, new, *now);
    }
    let (mut created, mut estimates_progress) = (Vec::new(), false);
    if is_deleting {
        // Its ReplicaSets are the garbage collector's.
    } else if is_paused || rollout.is_scaling_event() {
        rollout.scale_proportionally();
        if is_paused {
            actions.extend(clean_up(&rollout));
        }
    } else {
        estimates_progress = true;
        if limits::is_recreate(deployment) {
            let waits = rollout.scale_down_for_recreate() || rollout.old_pods_run(&observed.running);
            if !waits {
                created = new_set_or_create(&rollout, observed, &mut current);
                rollout.scale_new_to(replicas(deployment));
                actions.extend(clean_up_when_complete(&rollout));
            }
        } else {
            created = new_set_or_create(&rollout, observed, &mut current);
            if !rollout.scale_up_new() && !rollout.scale_down_old() {
                actions.extend(clean_up_when_complete(&rollout));
            }
        }
    }
    let next = status::calculate(&rollout, &current, estimates_progress, *now);
    let failed_before = observed.failure.is_some();
    actions.extend(rollout.writes());
    if !failed_before {
        actions.append(&mut created);
    }
    let revision = rollout.new_set().and_then(|set| revision::annotation(&set.metadata, revision::REVISION)).cloned();
    actions.extend(write_status(deployment, &next, revision));
    // A creation that failed before comes last: when it fails again, the status has been written.
    actions.append(&mut created);
    if estimates_progress && deployment.status.as_ref() == Some(&next) {
        actions.extend(status::progress_check(deployment, &next, *now).map(|after| Action::RunAgain { after }));
    }
    actions
}

/// Finds the new ReplicaSet, or says how to create it.
fn new_set_or_create(rollout: &Rollout<'_>, observed: &Observed, current: &mut DeploymentStatus) -> Vec<Action> {
    if rollout.new_set().is_some() {
        return Vec::new();
    }
    let deployment = rollout.deployment;
    let newest = rollout.max_old_revision() + 1;
    let mut set = revision::new_set(deployment, current.collision_count, newest);
    let name = set.metadata.name.clone().unwrap_or_default();
    if observed.taken.contains(&name) {
        current.collision_count = Some(current.collision_count.unwrap_or(0) + 1);
        return Vec::new();
    }
    let size = rollout.new_size(0);
    set.spec.replicas = Some(size);
    status::note_creation(deployment, current, &name, observed.failure.as_deref(), observed.now);
    let success =
        (size > 0).then(|| Note::normal("ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {size}")));
    let failed = Note::warning(status::CREATE_ERROR, format!("Failed to create new replica set {name:?}: {{}}"));
    vec![Action::Create {
        of: Resource::of::<ReplicaSet>(),
        namespace: deployment.metadata.namespace.clone().unwrap_or_default(),
        object: json!(set),
        copies: 1,
        notes: Notes::new(reference_to(deployment), success, Some(failed)),
    }]
}

/// A Deployment must not select everything.
fn selects_all(deployment: &Deployment) -> Vec<Action> {
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    let note = Note::warning("SelectingAll", message);
    let mut actions = vec![Action::Event { about: Box::new(reference_to(deployment)), note }];
    let mut status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        status.observed_generation = deployment.metadata.generation;
        actions.extend(write_status(deployment, &status, None));
    }
    actions
}

/// Writes the status, and with it the revision of the new ReplicaSet: on its own it would count as a new generation.
fn write_status(deployment: &Deployment, status: &DeploymentStatus, revision: Option<String>) -> Option<Action> {
    let mut next = Deployment { status: Some(status.clone()), ..deployment.clone() };
    if let Some(revision) = revision {
        next.metadata.annotations.get_or_insert_default().insert(revision::REVISION.to_owned(), revision);
    }
    if next == *deployment {
        return None;
    }
    Some(Action::Update { of: Resource::of::<Deployment>(), subresource: Some("status"), object: json!(next) })
}

fn clean_up_when_complete(rollout: &Rollout<'_>) -> Vec<Action> {
    let status = rollout.deployment.status.clone().unwrap_or_default();
    if status::is_complete(rollout.deployment, &status) { clean_up(rollout) } else { Vec::new() }
}

/// Deletes the oldest of the old ReplicaSets beyond the history's limit, but none that has or wants pods.
fn clean_up(rollout: &Rollout<'_>) -> Vec<Action> {
    let Some(limit) = rollout.deployment.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else {
        return Vec::new();
    };
    let mut old: Vec<&ReplicaSet> =
        rollout.old_sets().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    let surplus = old.len().saturating_sub(limit.try_into().unwrap_or(0));
    old.sort_by_key(|set| (revision::of(&set.metadata), rollout::age(set)));
    let is_idle = |set: &&ReplicaSet| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0 && replicas_of(set) == 0 && set.metadata.generation <= status.observed_generation
    };
    let delete = |set: &ReplicaSet| Action::Delete {
        of: Resource::of::<ReplicaSet>(),
        namespace: set.metadata.namespace.clone().unwrap_or_default(),
        name: set.metadata.name.clone().unwrap_or_default(),
        uid: set.metadata.uid.clone().unwrap_or_default(),
        how: Deletion::default(),
        notes: Notes::none(),
    };
    old.into_iter().take(surplus).filter(is_idle).map(delete).collect()
}

/// Observes Deployments and their ReplicaSets for the shell.
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn inputs(&self) -> Vec<GroupResource> {
        vec![
            Resource::of::<Deployment>().resource,
            Resource::of::<ReplicaSet>().resource,
            Resource::of::<Pod>().resource,
        ]
    }

    fn affected(&self, delta: &Delta, views: &Views) -> Vec<Key> {
        let deployments = Resource::of::<Deployment>().resource;
        let owner_key = |meta: &api::meta::Meta| {
            let owner = meta.controller().filter(|owner| owner.kind == "Deployment")?;
            Some(Key::new(&deployments, &meta.namespace, &owner.name))
        };
        match &*delta.key.group_resource().resource {
            "deployments" => vec![delta.key.clone()],
            "replicasets" => {
                let mut keys: Vec<Key> = delta.states().filter_map(|set| owner_key(set.meta())).collect();
                if let Some(orphan) = delta.new.as_ref().filter(|set| set.meta().controller().is_none()) {
                    let all = views.of::<Deployment>().in_namespace(&orphan.meta().namespace);
                    let wanting = all.filter(|deployment| {
                        let deployment = decode::<Deployment>(deployment);
                        let selector = deployment.map(|deployment| selector(&deployment.spec.selector));
                        selector.is_some_and(|selector| !selector.is_empty() && selector.matches(&orphan.meta().labels))
                    });
                    keys.extend(wanting.map(|deployment| deployment.key().clone()));
                }
                keys.sort();
                keys.dedup();
                keys
            }
            // Recreate waits until the last old pod is gone.
            _ => {
                let gone = delta.old.as_ref().filter(|_| delta.new.is_none());
                let set = gone.and_then(|pod| {
                    let owner = pod.meta().controller().filter(|owner| owner.kind == "ReplicaSet")?;
                    views.of::<ReplicaSet>().named(&pod.meta().namespace, &owner.name)
                });
                set.and_then(|set| owner_key(set.meta())).into_iter().collect()
            }
        }
    }

    fn plan(&self, run: &Run<'_>) -> Vec<Action> {
        let Some(deployment) = run.views.get::<Deployment>(run.key) else { return Vec::new() };
        let view = run.views.of::<ReplicaSet>();
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let selector = selector(&deployment.spec.selector);
        let lost = orphans(view, run.key.namespace()).filter(|set| selector.matches(&set.meta().labels));
        let sets: Vec<ReplicaSet> = view.owned_by(&uid).chain(lost).filter_map(|set| decode(set)).collect();
        let mut running = Vec::new();
        if limits::is_recreate(&deployment) {
            let pods = run.views.of::<Pod>();
            let own = sets.iter().filter_map(|set| set.metadata.uid.clone());
            running.extend(own.filter(|uid| {
                let mut pods = pods.owned_by(uid).filter_map(|pod| decode::<Pod>(pod));
                pods.any(|pod| {
                    let is_controller = controller_of(&pod.metadata).is_some_and(|owner| owner.uid == *uid);
                    is_controller && !pod::is_terminal(&pod)
                })
            }));
        }
        let taken = view.in_namespace(run.key.namespace()).map(|set| set.meta().name.clone()).collect();
        reconcile(&Observed { deployment, sets, running, taken, failure: run.failure.map(str::to_owned), now: run.now })
    }
}
