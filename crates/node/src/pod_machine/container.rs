//! One container within the pod machine: what it is, where it stands, and how it is being stopped.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec, ResourceRequirements};

use super::event::{Exit, ProbeKind, User};
use crate::backoff::Backoff;

/// Which of a pod's lists a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside all others.
    Sidecar,
    Main,
    /// Added to a pod that runs, for debugging: runs once, and nothing waits for it.
    Ephemeral,
}

impl Role {
    /// Whether a running container gives way to one of a changed definition.
    pub fn restarts_on_change(self) -> bool {
        match self {
            Self::Sidecar | Self::Main => true,
            Self::Init | Self::Ephemeral => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Neither created nor asked for.
    Idle,
    Pulling,
    Starting,
    Running(Running),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub started_at: Timestamp,
    /// The postStart hook has not returned yet.
    pub hook: bool,
    pub stopping: Option<Stopping>,
}

/// A container being stopped. `kill_at` is when the granted time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    pub stage: Stage,
    pub kill_at: Timestamp,
    /// Start it again whatever its exit code.
    pub restart: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The preStop hook runs.
    Hook,
    /// A sidecar that waits for those that depend on it to exit.
    Turn,
    /// The stop signal is sent.
    Signalled,
    Killed,
}

/// Why a container does not run, as in `state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// A run that was stopped to make way for the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Replaced {
    /// As it was while it ran.
    pub shown: ContainerStatus,
    /// Until then its successor may take its place unseen.
    pub until: Timestamp,
}

/// A container of the pod, over all its runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub name: String,
    pub role: Role,
    pub state: State,
    pub waiting: Option<Waiting>,
    /// The newest run that ended.
    pub exit: Option<Exit>,
    /// The run before `exit`.
    pub previous: Option<Exit>,
    /// Overrides the restart policy for `exit`.
    pub restart: Option<bool>,
    /// The run that ended with `exit`, while its successor is on its way.
    pub replaced: Option<Replaced>,
    /// `exit` happened in a sandbox that is gone: the container starts over as if it never ran in this one.
    pub stale: bool,
    /// The newest run's number, `None` before the first.
    pub attempt: Option<i32>,
    /// The newest run's id, without `coracle://`.
    pub id: Option<String>,
    /// What the newest run was started from; only what the pod says now counts as its definition.
    pub image: Option<String>,
    pub image_id: Option<String>,
    pub user: Option<User>,
    /// The resources that the newest run has.
    pub resources: Option<ResourceRequirements>,
    /// It is being restarted for other resources.
    pub restart_for_resize: bool,
    pub started: bool,
    pub ready: bool,
    pub retry_at: Option<Timestamp>,
    pub restarts: Backoff,
    pub pulls: Backoff,
    pub pull_failed_at: Option<Timestamp>,
    /// When to look next whether the image has come without us.
    pub look_at: Option<Timestamp>,
    pub pull_error: String,
    /// The image that could not be pulled, when it is that of a volume.
    pub pull_of: Option<String>,
}

impl Slot {
    pub fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            state: State::Idle,
            waiting: None,
            exit: None,
            previous: None,
            restart: None,
            replaced: None,
            stale: false,
            attempt: None,
            id: None,
            image: None,
            image_id: None,
            user: None,
            resources: None,
            restart_for_resize: false,
            started: false,
            ready: false,
            retry_at: None,
            restarts: Backoff::default(),
            pulls: Backoff::default(),
            pull_failed_at: None,
            look_at: None,
            pull_error: String::new(),
            pull_of: None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Pulling, starting or in its postStart hook: the next container waits for it.
    pub fn is_in_flight(&self) -> bool {
        match &self.state {
            State::Idle => false,
            State::Pulling | State::Starting => true,
            State::Running(running) => running.hook,
        }
    }

    pub fn running(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            State::Idle | State::Pulling | State::Starting => None,
        }
    }

    pub fn is_stopping(&self) -> bool {
        matches!(&self.state, State::Running(Running { stopping: Some(_), .. }))
    }

    /// The end of the run in this sandbox, if one ended and none follows yet.
    pub fn current_exit(&self) -> Option<&Exit> {
        match self.state {
            State::Idle | State::Pulling | State::Starting if !self.stale => self.exit.as_ref(),
            _ => None,
        }
    }

    /// Whether the container ran or runs in this sandbox.
    pub fn has_started(&self) -> bool {
        self.is_running() || self.current_exit().is_some()
    }

    pub fn succeeded(&self) -> bool {
        self.current_exit().is_some_and(|exit| exit.code == 0)
    }

    /// Takes over what the API knows of earlier runs.
    pub fn remember(&mut self, status: &ContainerStatus) {
        self.attempt = (status.restart_count > 0 || status.container_id.is_some()).then_some(status.restart_count);
        let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().and_then(|state| state.terminated.as_ref()).map(Exit::from_api)
        };
        (self.exit, self.previous) = match ended(&status.state) {
            Some(exit) => (Some(exit), ended(&status.last_state)),
            None => (ended(&status.last_state), None),
        };
        self.id = status.container_id.as_ref().map(|id| id.trim_start_matches("coracle://").to_owned());
        self.image = Some(status.image.clone()).filter(|_| self.id.is_some());
        self.image_id = Some(status.image_id.clone()).filter(|id| !id.is_empty());
        self.resources = status.resources.clone();
    }
}

/// Whether a container is started again after it ended with `code`.
///
/// Source: pkg/api/v1/pod/util.go, `ContainerShouldRestart`.
pub fn should_restart(container: &Container, spec: &PodSpec, role: Role, code: i32) -> bool {
    match role {
        Role::Sidecar => return true,
        Role::Ephemeral => return false,
        Role::Init | Role::Main => {}
    }
    if container.restart_policy.is_some() && rule_restarts(container, code) {
        return true;
    }
    let own = container.restart_policy.as_deref();
    match own.or(spec.restart_policy.as_deref()).unwrap_or("Always") {
        "Never" => false,
        // An init container that succeeded is done, whatever the pod's policy.
        "OnFailure" => code != 0,
        _ => role == Role::Main || code != 0,
    }
}

fn rule_restarts(container: &Container, code: i32) -> bool {
    let rules = container.restart_policy_rules.iter().flatten();
    let matching = rules.into_iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|on| {
            let listed = on.values.iter().flatten().any(|value| *value == code);
            match on.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    });
    matching.is_some_and(|rule| rule.action == "Restart")
}

/// Whether a container that fails a probe is started again: rules on exit codes do not count, it has none yet.
pub fn restarts_on_probe_failure(container: &Container, spec: &PodSpec, role: Role) -> bool {
    role == Role::Sidecar
        || container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).is_none_or(|policy| policy != "Never")
}

/// The time granted to a container that is stopped outside of the pod's own end.
///
/// Source: kuberuntime_container.go, `setTerminationGracePeriod`.
pub fn grace_of(container: &Container, spec: &PodSpec, failed: Option<ProbeKind>) -> SignedDuration {
    let probe = match failed {
        Some(ProbeKind::Liveness) => container.liveness_probe.as_ref(),
        Some(ProbeKind::Startup) => container.startup_probe.as_ref(),
        Some(ProbeKind::Readiness) | None => None,
    };
    let seconds = probe
        .and_then(|probe| probe.termination_grace_period_seconds)
        .or(spec.termination_grace_period_seconds)
        .unwrap_or(30);
    SignedDuration::from_secs(seconds.max(0))
}
