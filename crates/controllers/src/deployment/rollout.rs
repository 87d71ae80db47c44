//! How the pods of a Deployment are divided among its ReplicaSets, step by step.
//!
//! Source: kubernetes `pkg/controller/deployment/{rolling,recreate,sync}.go`.

use std::cmp::Reverse;

use client::events::reference_to;
use client::{PatchType, Resource};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Map, Value, json};

use super::limits::{is_recreate, max_surge, max_unavailable, replicas};
use super::revision;
use crate::action::{Action, Note, Notes};

/// A Deployment and its ReplicaSets, as they are and as they shall be.
pub struct Rollout<'a> {
    pub deployment: &'a Deployment,
    /// From old to new by age.
    sets: Vec<Set>,
    /// Which of them has the Deployment's template.
    new: Option<usize>,
}

struct Set {
    before: ReplicaSet,
    after: ReplicaSet,
}

/// The size that is wanted of a ReplicaSet.
pub fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// Orders from old to new.
pub fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, Option<String>) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.metadata.name.clone())
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

impl<'a> Rollout<'a> {
    pub fn new(deployment: &'a Deployment, mut sets: Vec<ReplicaSet>) -> Self {
        sets.sort_by_cached_key(age);
        let is_new = |set: &ReplicaSet| {
            let template = set.spec.template.as_ref();
            template.is_some_and(|template| revision::same_template(template, &deployment.spec.template))
        };
        let new = sets.iter().position(is_new);
        let sets = sets.into_iter().map(|set| Set { before: set.clone(), after: set }).collect();
        Self { deployment, sets, new }
    }

    pub fn sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.sets.iter().map(|set| &set.after)
    }

    pub fn new_set(&self) -> Option<&ReplicaSet> {
        self.new.map(|new| &self.sets[new].after)
    }

    pub fn new_set_mut(&mut self) -> Option<&mut ReplicaSet> {
        self.new.map(|new| &mut self.sets[new].after)
    }

    pub fn old_sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old().map(|old| &self.sets[old].after)
    }

    fn old(&self) -> impl Iterator<Item = usize> {
        let new = self.new;
        (0..self.sets.len()).filter(move |index| Some(*index) != new)
    }

    fn active(&self, indices: impl Iterator<Item = usize>) -> Vec<usize> {
        indices.filter(|index| self.size(*index) > 0).collect()
    }

    fn size(&self, index: usize) -> i32 {
        replicas_of(&self.sets[index].after)
    }

    fn total(&self) -> i32 {
        self.sets().map(replicas_of).sum()
    }

    pub fn max_old_revision(&self) -> i64 {
        self.old_sets().filter_map(|set| revision::of(&set.metadata)).max().unwrap_or(0)
    }

    /// Whether the Deployment was resized since its ReplicaSets were.
    pub fn is_scaling_event(&self) -> bool {
        self.active(0..self.sets.len()).into_iter().any(|index| {
            let desired = revision::count(&self.sets[index].after.metadata, revision::DESIRED);
            desired.is_some_and(|desired| desired != replicas(self.deployment))
        })
    }

    /// Resizes one ReplicaSet; returns whether its size changed.
    fn scale(&mut self, index: usize, to: i32) -> bool {
        let set = &mut self.sets[index].after;
        if replicas_of(set) == to {
            return false;
        }
        set.spec.replicas = Some(to);
        revision::set_sizes(self.deployment, set);
        true
    }

    pub fn scale_new_to(&mut self, to: i32) {
        if let Some(new) = self.new {
            self.scale(new, to);
        }
    }

    /// How large the new ReplicaSet, which has `current` replicas, may be now.
    pub fn new_size(&self, current: i32) -> i32 {
        let wanted = replicas(self.deployment);
        if is_recreate(self.deployment) {
            return wanted;
        }
        let room = wanted + max_surge(self.deployment) - self.total();
        if room <= 0 { current } else { current + room.min(wanted - current) }
    }

    /// Grows the new ReplicaSet as far as the surge allows; returns whether its size changed.
    pub fn scale_up_new(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let (size, wanted) = (self.size(new), replicas(self.deployment));
        let to = if size > wanted { wanted } else { self.new_size(size) };
        self.scale(new, to)
    }

    /// Shrinks the old ReplicaSets as far as availability allows, those with unhealthy pods first; returns whether one did.
    pub fn scale_down_old(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let old = self.active(self.old());
        let min_available = replicas(self.deployment) - max_unavailable(self.deployment);
        let new_unavailable = self.size(new) - available(&self.sets[new].after);
        let most = self.total() - min_available - new_unavailable;
        if old.is_empty() || most <= 0 {
            return false;
        }
        let mut scaled = 0;
        for index in &old {
            let unhealthy = self.size(*index) - available(&self.sets[*index].after);
            let fewer = unhealthy.min(most - scaled);
            if fewer > 0 {
                self.scale(*index, self.size(*index) - fewer);
                scaled += fewer;
            }
        }
        let counted = old.iter().copied().chain([new]);
        let mut spare = counted.map(|index| available(&self.sets[index].after)).sum::<i32>() - min_available;
        for index in &old {
            let fewer = self.size(*index).min(spare);
            if fewer > 0 {
                self.scale(*index, self.size(*index) - fewer);
                spare -= fewer;
                scaled += fewer;
            }
        }
        scaled > 0
    }

    /// Empties the old ReplicaSets; returns whether one had pods.
    pub fn scale_down_for_recreate(&mut self) -> bool {
        let old = self.active(self.old());
        for index in &old {
            self.scale(*index, 0);
        }
        !old.is_empty()
    }

    /// Whether pods of old ReplicaSets may still run; `running` are the uids of ReplicaSets with pods that have not ended.
    pub fn old_pods_run(&self, running: &[String]) -> bool {
        self.old_sets().any(|set| {
            let counted = set.status.as_ref().is_some_and(|status| status.replicas > 0);
            counted || set.metadata.uid.as_ref().is_some_and(|uid| running.contains(uid))
        })
    }

    /// Resizes all ReplicaSets in proportion, so that a resize in the middle of a rollout hastens nothing.
    pub fn scale_proportionally(&mut self) {
        let wanted = replicas(self.deployment);
        if let Some(only) = self.only_active_or_latest() {
            self.scale(only, wanted);
            return;
        }
        if self.is_saturated() {
            for index in self.active(self.old()) {
                self.scale(index, 0);
            }
            return;
        }
        if is_recreate(self.deployment) {
            return;
        }
        let mut active = self.active(0..self.sets.len());
        let total: i32 = active.iter().map(|index| self.size(*index)).sum();
        let allowed = if wanted > 0 { wanted + max_surge(self.deployment) } else { 0 };
        let to_add = allowed - total;
        // From large to small; of the same size the newer grow and the older shrink first. `sets` is ordered by age.
        if to_add >= 0 {
            active.sort_by_key(|index| (Reverse(self.size(*index)), Reverse(*index)));
        } else {
            active.sort_by_key(|index| (Reverse(self.size(*index)), *index));
        }
        let mut added = 0;
        let mut sizes = Vec::new();
        for index in &active {
            let proportion = self.proportion(*index, to_add, added);
            added += proportion;
            sizes.push(self.size(*index) + proportion);
        }
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + to_add - added).max(0);
        }
        for (index, size) in active.into_iter().zip(sizes) {
            self.scale(index, size);
            revision::set_sizes(self.deployment, &mut self.sets[index].after);
        }
    }

    /// The ReplicaSet to resize when at most one has pods.
    fn only_active_or_latest(&self) -> Option<usize> {
        match self.active(0..self.sets.len()).as_slice() {
            [] => self.new.or_else(|| self.old().last()),
            [only] => Some(*only),
            _ => None,
        }
    }

    /// Whether the new ReplicaSet has all replicas, and all are available.
    fn is_saturated(&self) -> bool {
        let wanted = replicas(self.deployment);
        self.new_set().is_some_and(|set| {
            let desired = revision::count(&set.metadata, revision::DESIRED);
            replicas_of(set) == wanted && desired == Some(wanted) && available(set) == wanted
        })
    }

    /// The part of `to_add` that falls to one ReplicaSet when `added` have been given out.
    #[allow(clippy::cast_possible_truncation, reason = "sizes are within i32")]
    fn proportion(&self, index: usize, to_add: i32, added: i32) -> i32 {
        let size = self.size(index);
        if size == 0 || to_add == added {
            return 0;
        }
        let fraction = if replicas(self.deployment) == 0 {
            -size
        } else {
            let most = replicas(self.deployment) + max_surge(self.deployment);
            let noted = revision::count(&self.sets[index].before.metadata, revision::MAXIMUM).filter(|most| *most > 0);
            let status = self.deployment.status.as_ref().and_then(|status| status.replicas);
            match noted.or(status).filter(|before| *before > 0) {
                Some(before) => (f64::from(size) * f64::from(most) / f64::from(before)).round() as i32 - size,
                None => 0,
            }
        };
        let left = to_add - added;
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// One patch for each ReplicaSet that shall differ, and the event for one that was resized.
    pub fn writes(&self) -> Vec<Action> {
        self.sets.iter().filter(|set| set.before != set.after).filter_map(|set| self.write(set)).collect()
    }

    fn write(&self, set: &Set) -> Option<Action> {
        let Set { before, after } = set;
        let changed = after.metadata.annotations.iter().flatten();
        let changed = changed.filter(|(key, value)| revision::annotation(&before.metadata, key) != Some(value));
        let annotations: Map<String, Value> = changed.map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut spec = Map::new();
        if before.spec.replicas != after.spec.replicas {
            spec.insert("replicas".to_owned(), json!(after.spec.replicas));
        }
        let ready = |set: &ReplicaSet| set.spec.min_ready_seconds.unwrap_or(0);
        if ready(before) != ready(after) {
            spec.insert("minReadySeconds".to_owned(), json!(ready(after)));
        }
        if annotations.is_empty() && spec.is_empty() {
            return None;
        }
        let mut patch = json!({"metadata": {"resourceVersion": before.metadata.resource_version}});
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = Value::Object(annotations);
        }
        if !spec.is_empty() {
            patch["spec"] = Value::Object(spec);
        }
        let name = before.metadata.name.clone().unwrap_or_default();
        let (from, to) = (replicas_of(before), replicas_of(after));
        let direction = if from < to { "up" } else { "down" };
        let resized = format!("Scaled {direction} replica set {name} from {from} to {to}");
        let success = (from != to).then(|| Note::normal("ScalingReplicaSet", resized));
        Some(Action::Patch {
            of: Resource::of::<ReplicaSet>(),
            namespace: before.metadata.namespace.clone().unwrap_or_default(),
            name,
            subresource: None,
            kind: PatchType::Merge,
            patch,
            living: None,
            notes: Notes::new(reference_to(self.deployment), success, None),
        })
    }
}
