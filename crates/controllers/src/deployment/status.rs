//! A Deployment's counts and conditions, and the estimate of its progress.
//!
//! Source: kubernetes `pkg/controller/deployment/{progress,sync}.go`, `util/deployment_util.go`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::limits::{max_unavailable, replicas};
use super::rollout::{Rollout, replicas_of};

/// How long after its deadline progress is judged, because times have whole seconds.
const SKEW: Duration = Duration::from_secs(1);

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";

pub const CREATE_ERROR: &str = "ReplicaSetCreateError";
const CREATED: &str = "NewReplicaSetCreated";
const FOUND: &str = "FoundNewReplicaSet";
const UPDATED: &str = "ReplicaSetUpdated";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// The time within which a rollout must make progress; `None` for no limit.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(kind))
}

fn progress_reason(status: &DeploymentStatus) -> Option<&str> {
    get(status, PROGRESSING).and_then(|condition| condition.reason.as_deref())
}

/// Adds or replaces a condition. One of the same status and reason is kept as it is, and the time of transition is that of
/// the status.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let kind = condition.type_.clone().unwrap_or_default();
    if let Some(current) = get(status, &kind)
        && current.status == condition.status
    {
        if current.reason == condition.reason {
            return;
        }
        condition.last_transition_time.clone_from(&current.last_transition_time);
    }
    remove(status, &kind);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_.as_deref() != Some(kind));
    }
    status.conditions = status.conditions.take().filter(|conditions| !conditions.is_empty());
}

fn condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Notes that the Deployment was paused or resumed, so that the time in between counts as no lack of progress.
pub fn note_pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    let reason = progress_reason(status);
    if deadline(deployment).is_none() || reason == Some(TIMED_OUT) {
        return;
    }
    let was_paused = reason == Some(PAUSED);
    match deployment.spec.paused.unwrap_or(false) {
        true if !was_paused => {
            set(status, condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now));
        }
        false if was_paused => {
            set(status, condition(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed".to_owned(), now));
        }
        true | false => {}
    }
}

/// Notes a new ReplicaSet that was there before progress was first estimated, or that could be created at last.
pub fn note_existing_set(deployment: &Deployment, status: &mut DeploymentStatus, new: &ReplicaSet, now: Timestamp) {
    let name = new.metadata.name.as_deref().unwrap_or_default();
    let (reason, message) = match progress_reason(status) {
        None => (FOUND, format!("Found new replica set {name:?}")),
        Some(CREATE_ERROR) => (CREATED, format!("Created new replica set {name:?}")),
        Some(_) => return,
    };
    if deadline(deployment).is_some() {
        set(status, condition(PROGRESSING, "True", reason, message, now));
    }
}

/// Notes that the new ReplicaSet is being created, or why it could not be.
pub fn note_creation(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    name: &str,
    failure: Option<&str>,
    now: Timestamp,
) {
    if deadline(deployment).is_none() {
        return;
    }
    let noted = match failure {
        None => condition(PROGRESSING, "True", CREATED, format!("Created new replica set {name:?}"), now),
        Some(error) => {
            let message = format!("Failed to create new replica set {name:?}: {error}");
            condition(PROGRESSING, "False", CREATE_ERROR, message, now)
        }
    };
    set(status, noted);
}

/// The status to report; `current` holds the conditions so far.
pub fn calculate(
    rollout: &Rollout<'_>,
    current: &DeploymentStatus,
    estimates_progress: bool,
    now: Timestamp,
) -> DeploymentStatus {
    let deployment = rollout.deployment;
    let of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let sum = |count: fn(&ReplicaSetStatus) -> i32| rollout.sets().map(|set| count(&of(set))).sum::<i32>();
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let wanted: i32 = rollout.sets().map(replicas_of).sum();
    // Counts of nothing are left out, as upstream's `omitempty` does.
    let some = |count: i32| (count > 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: some(rollout.new_set().map_or(0, |set| of(set).replicas)),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(wanted - available),
        terminating_replicas: terminating(rollout),
        collision_count: current.collision_count,
        conditions: current.conditions.clone(),
    };
    let availability = if available >= replicas(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.";
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", message.to_owned(), now)
    } else {
        let message = "Deployment does not have minimum availability.";
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message.to_owned(), now)
    };
    set(&mut status, availability);
    if estimates_progress {
        estimate_progress(rollout, current, &mut status, now);
    }
    status
}

/// `None` while a ReplicaSet does not report how many of its pods are terminating.
fn terminating(rollout: &Rollout<'_>) -> Option<i32> {
    let mut total = 0;
    for status in rollout.sets().filter_map(|set| set.status.as_ref()) {
        match status.terminating_replicas {
            Some(count) => total += count,
            None if status.observed_generation.unwrap_or(0) == 0 => {}
            None => return None,
        }
    }
    Some(total)
}

fn estimate_progress(rollout: &Rollout<'_>, current: &DeploymentStatus, status: &mut DeploymentStatus, now: Timestamp) {
    let deployment = rollout.deployment;
    if deadline(deployment).is_none() {
        remove(status, PROGRESSING);
    }
    let subject = match rollout.new_set() {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let was_complete = status.replicas == status.updated_replicas && progress_reason(current) == Some(COMPLETE);
    if let Some(limit) = deadline(deployment).filter(|_| !was_complete) {
        if is_complete(deployment, status) {
            let message = format!("{subject} has successfully progressed.");
            set(status, condition(PROGRESSING, "True", COMPLETE, message, now));
        } else if has_progressed(deployment, status) {
            let mut progress = condition(PROGRESSING, "True", UPDATED, format!("{subject} is progressing."), now);
            if let Some(before) = get(current, PROGRESSING).filter(|before| before.status.as_deref() == Some("True")) {
                progress.last_transition_time.clone_from(&before.last_transition_time);
            }
            // The same reason again, and yet the time of the update must move.
            remove(status, PROGRESSING);
            set(status, progress);
        } else if has_timed_out(status, limit, now) {
            let message = format!("{subject} has timed out progressing.");
            set(status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match replica_failure(rollout) {
        Some(failure) => set(status, failure),
        None => remove(status, FAILURE),
    }
}

/// Whether all replicas are new, and available, and nothing else runs.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
    let counts = all(status.updated_replicas) && all(status.replicas) && all(status.available_replicas);
    counts && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let before = deployment.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(status.updated_replicas) > count(before.updated_replicas)
        || old(status) < old(&before)
        || count(status.ready_replicas) > count(before.ready_replicas)
        || count(status.available_replicas) > count(before.available_replicas)
}

fn has_timed_out(status: &DeploymentStatus, limit: Duration, now: Timestamp) -> bool {
    let Some(progress) = get(status, PROGRESSING) else { return false };
    match progress.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => progress.last_update_time.as_ref().is_some_and(|time| time.0 + limit < now),
    }
}

/// The failure of a ReplicaSet, of the new one first.
fn replica_failure(rollout: &Rollout<'_>) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.clone()?;
        conditions.into_iter().find(|condition| condition.type_.as_deref() == Some(FAILURE))
    };
    let failed = rollout.new_set().and_then(failure).or_else(|| rollout.sets().find_map(failure))?;
    Some(DeploymentCondition {
        type_: failed.type_,
        status: failed.status,
        reason: failed.reason,
        message: failed.message,
        last_update_time: failed.last_transition_time.clone(),
        last_transition_time: failed.last_transition_time,
    })
}

/// When to look again whether a rollout that seems stuck has exceeded its deadline.
pub fn progress_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let limit = deadline(deployment)?;
    let progress = get(status, PROGRESSING)?;
    if is_complete(deployment, status) || progress.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let due = progress.last_update_time.as_ref()?.0 + limit;
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default() + SKEW)
}
