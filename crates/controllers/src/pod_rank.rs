//! The order in which a ReplicaSet gives up pods.
//!
//! Source: kubernetes `pkg/controller/controller_utils.go`, `ActivePodsWithRanks`. Upstream breaks ties of equal logarithmic
//! age by uid at once, which is not an order (it can say a < b < c < a); here the uid decides last.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod's place: those that compare less are deleted first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    is_assigned: bool,
    phase: u8,
    is_ready: bool,
    deletion_cost: i32,
    /// Pods of the same owner on its node.
    neighbours: Reverse<usize>,
    ready_for: i64,
    restarts: Reverse<(i32, i32)>,
    age: i64,
    uid: String,
}

/// Ranks one pod; `neighbours` is the number of related active pods on its node.
pub fn deletion_rank(pod: &Pod, neighbours: usize, now: Timestamp) -> Rank {
    let phase = match pod::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Rank {
        is_assigned: !pod::node_name(pod).is_empty(),
        phase,
        is_ready: pod::is_ready(pod),
        deletion_cost: deletion_cost(pod),
        neighbours: Reverse(neighbours),
        ready_for: logarithmic_age(pod::ready_since(pod), now),
        restarts: Reverse(pod::max_restarts(pod)),
        age: logarithmic_age(created, now),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// Absent and malformed costs are 0; upstream refuses a plus sign and leading zeros.
fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST));
    let digits = cost.map(|cost| cost.strip_prefix('-').unwrap_or(cost));
    let well_formed =
        digits.is_some_and(|digits| digits == "0" || digits.starts_with(|first| matches!(first, '1'..='9')));
    cost.filter(|_| well_formed).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The binary logarithm of an age in nanoseconds: ages that hardly differ are equal. No time at all counts as the youngest.
fn logarithmic_age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return -2 };
    let nanoseconds = now.duration_since(since).as_nanos();
    nanoseconds.checked_ilog2().map_or(-1, i64::from)
}
