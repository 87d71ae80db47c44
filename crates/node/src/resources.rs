//! What a pod asks for and what its cgroups get: quality of service, totals, shares, quotas and OOM scores.
//!
//! Sources: component-helpers `resource/helpers.go`; kubelet `cm/helpers_linux.go`, `qos/policy.go`,
//! `kuberuntime/kuberuntime_container_linux.go`; apis/core `v1/helper/qos/qos.go`.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use runtime::plan::{Qos, Resources};

/// Processes and threads that one pod may have. Source: reliability goals; the kubelet's `podPidsLimit` is off by default.
pub const PIDS_LIMIT: u64 = 4096;

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
/// Microseconds. Source: `MinQuotaPeriod` in helpers_linux.go.
const MIN_QUOTA: u64 = 1000;

pub type Amounts = BTreeMap<String, Quantity>;

/// Which of a container's two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

fn amounts(of: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    of.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?))).collect()
}

fn side(requirements: Option<&ResourceRequirements>, side: Side) -> Amounts {
    amounts(requirements.and_then(|requirements| match side {
        Side::Requests => requirements.requests.as_ref(),
        Side::Limits => requirements.limits.as_ref(),
    }))
}

/// A container's requests or limits.
pub fn of_container(container: &Container, which: Side) -> Amounts {
    side(container.resources.as_ref(), which)
}

/// What the whole pod needs: the containers together with the sidecars, or the greediest moment of its start-up.
///
/// Source: `PodRequests` and `PodLimits`.
pub fn of_pod(spec: &PodSpec, which: Side) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &of_container(container, which));
    }
    let (mut sidecars, mut start_up) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container, which);
        let mut moment = own.clone();
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            moment = sidecars.clone();
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut start_up, &moment);
    }
    raise(&mut total, &start_up);
    total.extend(side(spec.resources.as_ref(), which));
    for (name, overhead) in amounts(spec.overhead.as_ref()) {
        if which == Side::Requests || total.contains_key(&name) {
            add(&mut total, &Amounts::from([(name, overhead)]));
        }
    }
    total
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = *sum + *amount;
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let entry = to.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

/// Amounts in the API's form.
pub fn to_api(from: &Amounts) -> BTreeMap<String, ApiQuantity> {
    from.iter().map(|(name, amount)| (name.clone(), ApiQuantity(amount.to_string()))).collect()
}

/// Source: qos.go, `ComputePodQOS`.
pub fn qos(spec: &PodSpec) -> Qos {
    if spec.resources.as_ref().is_some_and(|own| own.requests.is_some() || own.limits.is_some()) {
        return qos_of(&[(side(spec.resources.as_ref(), Side::Requests), side(spec.resources.as_ref(), Side::Limits))]);
    }
    let each: Vec<(Amounts, Amounts)> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|container| (of_container(container, Side::Requests), of_container(container, Side::Limits)))
        .collect();
    qos_of(&each)
}

fn qos_of(each: &[(Amounts, Amounts)]) -> Qos {
    let counted = |amounts: &Amounts| -> Amounts {
        let relevant =
            amounts.iter().filter(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero());
        relevant.map(|(name, amount)| (name.clone(), *amount)).collect()
    };
    let (mut requests, mut limits, mut limited) = (Amounts::new(), Amounts::new(), true);
    for (asked, bound) in each {
        let bound = counted(bound);
        limited &= bound.len() == 2;
        add(&mut requests, &counted(asked));
        add(&mut limits, &bound);
    }
    if requests.is_empty() && limits.is_empty() {
        return Qos::BestEffort;
    }
    let equal =
        requests.len() == limits.len() && requests.iter().all(|(name, amount)| limits.get(name) == Some(amount));
    if limited && equal { Qos::Guaranteed } else { Qos::Burstable }
}

/// The class as `status.qosClass` has it.
pub fn qos_name(qos: Qos) -> &'static str {
    match qos {
        Qos::Guaranteed => "Guaranteed",
        Qos::Burstable => "Burstable",
        Qos::BestEffort => "BestEffort",
    }
}

/// Source: helpers_linux.go, `MilliCPUToShares`.
pub fn shares(milli: i64) -> u64 {
    let milli = u64::try_from(milli).unwrap_or(0);
    if milli == 0 { MIN_SHARES } else { (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// Microseconds in each period of 100 ms; `None` for no limit. Source: helpers_linux.go, `MilliCPUToQuota`.
pub fn quota(milli: i64) -> Option<u64> {
    let milli = u64::try_from(milli).unwrap_or(0);
    (milli > 0).then(|| (milli * 100).max(MIN_QUOTA))
}

fn bytes(amounts: &Amounts) -> Option<u64> {
    let memory = amounts.get("memory").filter(|amount| !amount.is_zero())?;
    u64::try_from(memory.value()).ok()
}

fn millis(amounts: &Amounts) -> Option<i64> {
    amounts.get("cpu").map(Quantity::millis)
}

/// The cgroup of one container. Source: kuberuntime_container_linux.go, `calculateLinuxResources`.
pub fn container_cgroup(container: &Container) -> Resources {
    let (requests, limits) = (of_container(container, Side::Requests), of_container(container, Side::Limits));
    // Without a request the limit is the request, as the API's defaulting has it.
    let asked = millis(&requests).or(millis(&limits)).unwrap_or(0);
    Resources {
        cpu_shares: Some(shares(asked)),
        cpu_quota: quota(millis(&limits).unwrap_or(0)),
        memory_limit: bytes(&limits),
        pids_limit: None,
    }
}

/// The cgroup of the pod. Source: helpers_linux.go, `ResourceConfigForPod`.
pub fn pod_cgroup(spec: &PodSpec) -> Resources {
    let (requests, limits) = (of_pod(spec, Side::Requests), of_pod(spec, Side::Limits));
    let bounded = |name: &str| {
        side(spec.resources.as_ref(), Side::Limits).contains_key(name)
            || spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(|container| {
                of_container(container, Side::Limits).get(name).is_some_and(|amount| !amount.is_zero())
            })
    };
    let (cpu_bounded, memory_bounded) = (bounded("cpu"), bounded("memory"));
    Resources {
        cpu_shares: Some(if qos(spec) == Qos::BestEffort {
            MIN_SHARES
        } else {
            shares(millis(&requests).unwrap_or(0))
        }),
        cpu_quota: if cpu_bounded { quota(millis(&limits).unwrap_or(0)) } else { None },
        memory_limit: if memory_bounded { bytes(&limits) } else { None },
        pids_limit: Some(PIDS_LIMIT),
    }
}

/// Which processes the kernel kills first. Source: qos/policy.go, `GetContainerOOMScoreAdjust`.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: u64) -> i32 {
    const SYSTEM_NODE_CRITICAL: i32 = 2_000_001_000;
    let Some(spec) = &pod.spec else { return 1000 };
    if spec.priority.is_some_and(|priority| priority >= SYSTEM_NODE_CRITICAL) {
        return -997;
    }
    match qos(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = bytes(&of_container(container, Side::Requests)).unwrap_or(0);
            let share = u128::from(asked) * 1000 / u128::from(memory_capacity.max(1));
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            // 3 keeps clear of Guaranteed at -997 after the 1000 of the process itself; 999 of BestEffort.
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn asks(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn class_follows_requests_and_limits() {
        let check =
            |containers: Vec<Value>, expected| assert_eq!(qos(&spec(json!({"containers": containers}))), expected);
        let both = json!({"cpu": "1", "memory": "1Gi"});
        check(vec![asks(json!({}), json!({}))], Qos::BestEffort);
        check(vec![asks(both.clone(), json!({"cpu": "1000m", "memory": "1024Mi"}))], Qos::Guaranteed);
        check(vec![asks(both.clone(), both.clone()), asks(json!({}), json!({}))], Qos::Burstable);
        check(vec![asks(json!({"cpu": "1"}), json!({"cpu": "1"}))], Qos::Burstable);
    }

    #[test]
    fn start_up_counts_against_the_sum() {
        let spec = spec(json!({
            "containers": [asks(json!({"cpu": "1"}), json!({})), asks(json!({"cpu": "500m"}), json!({}))],
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "200m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "3"}}},
            ],
        }));
        assert_eq!(of_pod(&spec, Side::Requests)["cpu"].millis(), 3200);
    }

    #[test]
    fn cgroup_numbers_are_the_kubelets() {
        assert_eq!([shares(0), shares(1), shares(100), shares(1000)], [2, 2, 102, 1024]);
        assert_eq!([quota(0), quota(5), quota(500)], [None, Some(1000), Some(50_000)]);
        let one =
            spec(json!({"containers": [asks(json!({"memory": "64Mi"}), json!({"memory": "128Mi"})), {"name": "d"}]}));
        assert_eq!(pod_cgroup(&one).memory_limit, None, "one container without a limit leaves the pod without");
    }

    #[test]
    fn burstable_oom_scores_stay_between() {
        let pod = |memory: &str| Pod {
            spec: Some(spec(json!({"containers": [asks(json!({"memory": memory}), json!({}))]}))),
            ..Pod::default()
        };
        let score = |memory: &str| {
            let pod = pod(memory);
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 4 << 30)
        };
        assert_eq!([score("1Gi"), score("4Gi"), score("1Ki")], [750, 3, 999]);
    }
}
