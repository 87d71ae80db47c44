//! How many pods a Deployment wants, may have, and may lack.
//!
//! Source: kubernetes `pkg/controller/deployment/util/deployment_util.go` (`MaxSurge`, `MaxUnavailable`, `ResolveFenceposts`).

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if is_recreate(deployment) || wanted == 0 { 0 } else { fenceposts(deployment).1.min(wanted) }
}

/// Surge is rounded up and unavailability down; if that leaves neither, one pod may be unavailable, because a rollout that
/// can do neither never ends.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let wanted = replicas(deployment);
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).map_or(0, |value| scaled(value, wanted, true));
    let lack = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let lack = lack.map_or(0, |value| scaled(value, wanted, false));
    if surge == 0 && lack == 0 { (0, 1) } else { (surge, lack) }
}

/// Resolves a number or percentage. Validation has refused anything else.
fn scaled(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0);
            let product = percent * i64::from(of);
            let rounded = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            rounded.try_into().unwrap_or(i32::MAX)
        }
    }
}
