//! Probes: each runs in a task of its own on a timer of its own, and tells the pod's machine when a threshold is passed.
//!
//! Sources: prober/worker.go (thresholds, schedule, manual runs while a container is not ready), prober/prober.go (messages).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use runtime::Runtime;
use tokio::sync::mpsc;

use crate::exec::{self, Ended};
use crate::http_get::{self, Get};
use crate::pod_machine::event::ProbeKind;

/// Attempts when a probe cannot be carried out at all. Source: prober.go, `maxProbeRetries`.
const ATTEMPTS: usize = 3;

/// The first gap between extra probes of a container that has just started, and of commands, which cost more.
const FIRST_GAP: Duration = Duration::from_millis(20);
const FIRST_COMMAND_GAP: Duration = Duration::from_millis(100);

/// One probe's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Healthy,
    /// Healthy, but the user should know.
    Warning(String),
    Unhealthy(String),
    /// The probe itself could not be carried out: no answer about the container.
    Error(String),
}

/// Counts answers until they amount to a result.
#[derive(Clone, Debug)]
pub struct Counter {
    failure_threshold: i32,
    success_threshold: i32,
    last: Option<bool>,
    run: i32,
    told: Option<bool>,
}

impl Counter {
    pub fn new(probe: &Probe) -> Self {
        Self {
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            last: None,
            run: 0,
            told: None,
        }
    }

    /// The new result, when this answer passes a threshold and changes what was told last.
    pub fn observe(&mut self, healthy: bool) -> Option<bool> {
        self.run = if self.last == Some(healthy) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(healthy);
        let threshold = if healthy { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold || self.told == Some(healthy) {
            return None;
        }
        self.told = Some(healthy);
        Some(healthy)
    }
}

/// Extra probes after a container's start, at growing gaps, until one succeeds or the gap has grown to the period.
///
/// Upstream probes out of turn whenever it looks at a pod that is not ready (`manualTriggerCh`); here the gaps stand in for its
/// looking. Only their success counts: a program that is still starting is no failure, and thresholds keep their meaning.
#[derive(Clone, Debug)]
struct Eager {
    gap: Option<Duration>,
    period: Duration,
}

impl Eager {
    /// `None` for what is never probed out of turn: liveness, and containers that had started before this process did.
    fn new(kind: ProbeKind, probe: &Probe, period: Duration, adopted: bool) -> Self {
        let first = if probe.exec.is_some() { FIRST_COMMAND_GAP } else { FIRST_GAP };
        let wanted = kind != ProbeKind::Liveness && !adopted && first < period;
        Self { gap: wanted.then_some(first), period }
    }

    /// How long to wait for the next extra probe, if there is to be one.
    fn gap(&self) -> Option<Duration> {
        self.gap
    }

    fn observe(&mut self, healthy: bool) {
        self.gap = self.gap.map(|gap| gap * 2).filter(|gap| !healthy && *gap < self.period);
    }
}

/// As messages name the kind.
pub fn kind_name(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Readiness => "Readiness",
        ProbeKind::Liveness => "Liveness",
    }
}

/// The probe of this kind in a container.
pub fn of_container(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
    }
}

/// Where a probe goes.
#[derive(Clone)]
pub struct Target {
    pub runtime: Runtime,
    pub pod: String,
    pub pod_ip: String,
    pub id: String,
    pub container: Container,
    pub kind: ProbeKind,
    pub started_at: Timestamp,
}

/// What a probe's task tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A threshold was passed.
    Result(bool),
    /// An event of this reason for the container.
    Record { reason: &'static str, message: String },
}

/// Probes until the result is final: a startup probe that succeeded or failed, a liveness probe that failed.
///
/// Cancel safe: dropping it ends the probing. `first` delays the first probe of a container that was adopted, so that after a
/// restart of ours not all of them come at once.
pub async fn run(target: Target, first: Duration, now: Timestamp, reports: mpsc::Sender<Report>) {
    let Some(probe) = of_container(&target.container, target.kind).cloned() else { return };
    let seconds =
        |value: Option<i32>, default: u64| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default);
    let initial = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    let age = Duration::try_from(now.duration_since(target.started_at)).unwrap_or_default();
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
    tokio::time::sleep(initial.saturating_sub(age).max(first)).await;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut counter = Counter::new(&probe);
    let mut eager = Eager::new(target.kind, &probe, period, !first.is_zero());
    let mut begun = false;
    // Nobody listens any more when the pod is gone.
    let report = async |report| drop(reports.send(report).await);
    loop {
        let gap = eager.gap().filter(|_| begun);
        let in_turn = tokio::select! {
            _ = ticks.tick() => true,
            () = tokio::time::sleep(gap.unwrap_or_default()), if gap.is_some() => false,
        };
        begun = true;
        let kind = kind_name(target.kind);
        let outcome = attempt(&target, &probe).await;
        let healthy = matches!(outcome, Outcome::Healthy | Outcome::Warning(_));
        eager.observe(healthy);
        if !in_turn {
            if !healthy {
                continue;
            }
            ticks.reset();
        }
        match outcome {
            Outcome::Healthy => {}
            Outcome::Warning(text) => {
                report(Report::Record { reason: "ProbeWarning", message: format!("{kind} probe warning: {text}") })
                    .await;
            }
            Outcome::Unhealthy(text) => {
                report(Report::Record { reason: "Unhealthy", message: format!("{kind} probe failed: {text}") }).await;
            }
            Outcome::Error(text) => {
                let message = format!("{kind} probe errored and resulted in unknown state: {text}");
                report(Report::Record { reason: "Unhealthy", message }).await;
                continue;
            }
        }
        if let Some(result) = counter.observe(healthy) {
            report(Report::Result(result)).await;
            let last = match target.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => !result,
                ProbeKind::Readiness => false,
            };
            if last {
                return;
            }
        }
    }
}

async fn attempt(target: &Target, probe: &Probe) -> Outcome {
    let mut outcome = Outcome::Error(String::new());
    for _ in 0..ATTEMPTS {
        outcome = once(target, probe).await;
        if !matches!(outcome, Outcome::Error(_)) {
            break;
        }
    }
    outcome
}

async fn once(target: &Target, probe: &Probe) -> Outcome {
    let timeout = probe.timeout_seconds.and_then(|value| u64::try_from(value).ok()).unwrap_or(1).max(1);
    let timeout = Duration::from_secs(timeout);
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match exec::run(&target.runtime, &target.pod, &target.id, command, Some(timeout)).await {
            Ended::Exited { code: 0, .. } => Outcome::Healthy,
            Ended::Exited { output, .. } => Outcome::Unhealthy(output),
            Ended::TimedOut => {
                Outcome::Unhealthy(format!("command timed out: {shown:?} timed out after {}s", timeout.as_secs()))
            }
            Ended::Failed(error) => Outcome::Error(error),
        };
    }
    if let Some(action) = &probe.http_get {
        let get = match Get::new(action, &target.container, &target.pod_ip, "probe") {
            Ok(get) => get,
            Err(error) => return Outcome::Error(error),
        };
        return match get.send(timeout).await {
            Err(error) => Outcome::Unhealthy(error),
            Ok(answer) if (200..300).contains(&answer.code) => Outcome::Healthy,
            Ok(answer) if (300..400).contains(&answer.code) => {
                Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
            }
            Ok(answer) => Outcome::Unhealthy(format!("HTTP probe failed with statuscode: {}", answer.code)),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = match http_get::port(&action.port, &target.container) {
            Ok(port) => port,
            Err(error) => return Outcome::Error(error),
        };
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.pod_ip);
        return match tokio::time::timeout(timeout, http_get::connect(host, port)).await {
            Ok(Ok(_)) => Outcome::Healthy,
            Ok(Err(error)) => Outcome::Unhealthy(error),
            Err(_) => Outcome::Unhealthy(format!("dial tcp {}: i/o timeout", http_get::host_port(host, port))),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Error(format!("invalid port number: {}", action.port));
        };
        let service = action.service.as_deref().unwrap_or_default();
        return match http_get::grpc_health(&target.pod_ip, port, service, timeout).await {
            Ok(()) => Outcome::Healthy,
            Err(error) => Outcome::Unhealthy(error),
        };
    }
    Outcome::Error(format!("missing probe handler for container {}", target.container.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(thresholds: (i32, i32), answers: &str, expected: &str) {
        let probe = json!({"failureThreshold": thresholds.0, "successThreshold": thresholds.1});
        let mut counter = Counter::new(&serde_json::from_value(probe).unwrap());
        let told: String = answers
            .chars()
            .map(|answer| match counter.observe(answer == '+') {
                Some(true) => 'Y',
                Some(false) => 'N',
                None => '.',
            })
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn a_program_that_starts_is_asked_often_and_then_rarely() {
        let gaps = |kind, probe: serde_json::Value, period, adopted, healthy_at: usize| {
            let probe = serde_json::from_value(probe).unwrap();
            let mut eager = Eager::new(kind, &probe, Duration::from_millis(period), adopted);
            let asked = (0..).map_while(|n| {
                let gap = eager.gap()?;
                eager.observe(n == healthy_at);
                Some(gap.as_millis())
            });
            asked.collect::<Vec<_>>()
        };
        let (http, exec) = (json!({"httpGet": {"port": 80}}), json!({"exec": {"command": ["true"]}}));
        assert_eq!(gaps(ProbeKind::Readiness, http.clone(), 200, false, 99), [20, 40, 80, 160]);
        assert_eq!(gaps(ProbeKind::Startup, exec, 1000, false, 99), [100, 200, 400, 800]);
        assert_eq!(gaps(ProbeKind::Readiness, http.clone(), 10_000, false, 1), [20, 40]);
        assert!(gaps(ProbeKind::Liveness, http.clone(), 10_000, false, 99).is_empty());
        assert!(gaps(ProbeKind::Readiness, http, 10_000, true, 99).is_empty(), "the API's word counts until it fails");
    }

    #[test]
    fn thresholds_need_answers_in_a_row() {
        check((3, 1), "+++---++", "Y....NY.");
        check((3, 1), "--+--+---", "..Y.....N");
        check((1, 2), "-+-++", "N...Y");
    }
}
