//! A pod machine's state as the API's `PodStatus`.
//!
//! Sources: kubelet_pods.go, `generateAPIPodStatus`, `convertToAPIContainerStatuses` and `getPhase`; status/generate.go;
//! status/status_manager.go, `TerminatePod` and `mergePodStatus`.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP, PodSpec, PodStatus, ResourceRequirements,
    VolumeMountStatus,
};

use crate::pod_machine::container::{Role, Slot, State, Waiting, should_restart};
use crate::pod_machine::event::Exit;
use crate::pod_machine::{Machine, Resize, Sandbox, api_time};
use crate::resources::{self, Side};

/// The conditions that the kubelet writes; all others are kept as they are. Source: types/pod_status.go.
pub const OWNED: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

impl Machine {
    /// The pod's status now. `host` are the node's addresses, primary family first.
    pub fn status(&mut self, host: &[IpAddr], now: Timestamp) -> PodStatus {
        let spec = self.pod.spec.clone().unwrap_or_default();
        let old = self.pod.status.clone().unwrap_or_default();
        let ended = self.has_ended();
        let mut init = self.statuses(&spec, ended, now, |role| matches!(role, Role::Init | Role::Sidecar));
        let mut main = self.statuses(&spec, ended, now, |role| role == Role::Main);
        let any_started = self.slots.iter().any(|slot| slot.role == Role::Main && slot.is_running());
        let failed = self.stop.as_ref().and_then(|stop| stop.failed.clone());
        let mut phase = phase(&spec, &init, &main, ended, any_started);
        let (mut reason, mut message) = (None, None);
        if let Some(terminal @ ("Succeeded" | "Failed")) = old.phase.as_deref() {
            phase = if terminal == "Failed" { "Failed" } else { "Succeeded" };
            (reason, message) = (old.reason.clone(), old.message.clone());
        } else if ended {
            if let Some((why, text)) = failed {
                (phase, reason, message) = ("Failed", Some(why), Some(text));
            } else if phase == "Pending" || phase == "Running" {
                // Whatever did not get to its own end was cut off.
                phase = "Failed";
            }
        } else if phase != "Pending" {
            // A terminal phase is not told while containers may run. Source: `mergePodStatus`.
            let busy = self.slots.iter().any(|slot| slot.is_running());
            if busy && phase != "Running" {
                phase = "Running";
            }
        }
        if self.rejected {
            (init, main) = (Vec::new(), Vec::new());
        }
        let ephemeral = self.statuses(&spec, ended, now, |role| role == Role::Ephemeral);
        let conditions = self.fresh_conditions(&spec, &old, &init, &main, phase, now);
        self.conditions.clone_from(&conditions);
        let ips = self.pod_ips(&spec, host);
        let (requests, limits) = (resources::of_pod(&spec, Side::Requests), resources::of_pod(&spec, Side::Limits));
        PodStatus {
            phase: Some(phase.to_owned()),
            reason,
            message,
            observed_generation: self.pod.metadata.generation,
            conditions: Some(conditions),
            host_ip: host.first().map(ToString::to_string),
            host_ips: Some(host.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
            pod_ip: ips.first().cloned(),
            pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
            start_time: Some(api_time(self.start_time)),
            init_container_statuses: (!init.is_empty()).then_some(init),
            container_statuses: (!main.is_empty()).then_some(main),
            ephemeral_container_statuses: (!ephemeral.is_empty() && !self.rejected).then_some(ephemeral),
            resources: Some(ResourceRequirements {
                requests: Some(resources::to_api(&requests)).filter(|amounts| !amounts.is_empty()),
                limits: Some(resources::to_api(&limits)).filter(|amounts| !amounts.is_empty()),
                claims: None,
            }),
            allocated_resources: Some(resources::to_api(&requests)).filter(|amounts| !amounts.is_empty()),
            qos_class: Some(resources::qos_name(resources::qos(&spec)).to_owned()),
            // Fields that others own.
            nominated_node_name: old.nominated_node_name,
            resource_claim_statuses: old.resource_claim_statuses,
            ..PodStatus::default()
        }
    }

    /// Whether no container of the pod will run any more.
    pub fn has_ended(&self) -> bool {
        self.stop.is_some() && self.slots.iter().all(|slot| slot.state == State::Idle)
    }

    fn pod_ips(&self, spec: &PodSpec, host: &[IpAddr]) -> Vec<String> {
        if self.rejected {
            return Vec::new();
        }
        if spec.host_network == Some(true) {
            return host.iter().map(ToString::to_string).collect();
        }
        by_family(&self.ips, host)
    }

    /// A container that runs, as the API sees it.
    pub(crate) fn shown(&self, index: usize) -> Option<ContainerStatus> {
        let slot = &self.slots[index];
        Some(self.container_status(index, slot, self.container(&slot.name)?, false, false))
    }

    fn statuses(
        &self,
        spec: &PodSpec,
        ended: bool,
        now: Timestamp,
        wanted: impl Fn(Role) -> bool,
    ) -> Vec<ContainerStatus> {
        let initializing = spec.init_containers.iter().flatten().next().is_some();
        let initialized = !initializing
            || self.slots.iter().any(|slot| slot.role == Role::Main && (slot.exit.is_some() || slot.is_running()))
            || self.slots.iter().rfind(|slot| slot.role == Role::Init).is_some_and(Slot::succeeded);
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| wanted(slot.role));
        let mut statuses: Vec<ContainerStatus> = slots
            .filter_map(|(index, slot)| {
                let container = self.container(&slot.name)?;
                if let Some(replaced) = slot.replaced.as_ref().filter(|replaced| now < replaced.until)
                    && slot.is_in_flight()
                {
                    return Some(replaced.shown.clone());
                }
                let unknown = ended && initialized && slot.role == Role::Main;
                Some(self.container_status(index, slot, container, initializing, unknown))
            })
            .collect();
        if self.slots.iter().any(|slot| slot.role == Role::Main && wanted(slot.role)) {
            statuses.sort_by(|a, b| a.name.cmp(&b.name));
        }
        statuses
    }

    fn container_status(
        &self,
        index: usize,
        slot: &Slot,
        container: &Container,
        initializing: bool,
        unknown: bool,
    ) -> ContainerStatus {
        let (state, last) = self.states(index, slot, initializing, unknown);
        let running = state.running.is_some();
        let created = slot.id.is_some();
        // What it has, not what it is to have.
        let has = slot.resources.clone().or_else(|| container.resources.clone()).unwrap_or_default();
        let has = created.then_some(has);
        let ready = match slot.role {
            Role::Init => slot.succeeded(),
            Role::Sidecar | Role::Main => running && slot.ready,
            Role::Ephemeral => false,
        };
        ContainerStatus {
            name: slot.name.clone(),
            // What it was started from, not what it is to become.
            image: slot.image.clone().filter(|_| created).or_else(|| container.image.clone()).unwrap_or_default(),
            image_id: slot.image_id.clone().filter(|_| created).unwrap_or_default(),
            container_id: slot.id.as_ref().filter(|id| !id.is_empty()).map(|id| format!("coracle://{id}")),
            restart_count: slot.attempt.unwrap_or(0),
            ready,
            started: Some(running && slot.started),
            state: Some(state),
            last_state: Some(last),
            resources: has.clone(),
            allocated_resources: has.and_then(|own| own.requests),
            user: slot.user.as_ref().map(|user| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: user.uid.into(),
                    gid: user.gid.into(),
                    supplemental_groups: Some(user.groups.iter().map(|group| (*group).into()).collect()),
                }),
            }),
            volume_mounts: mount_statuses(container),
            ..ContainerStatus::default()
        }
    }

    /// `state` and `lastState`.
    fn states(&self, index: usize, slot: &Slot, initializing: bool, unknown: bool) -> (ContainerState, ContainerState) {
        let ended = |exit: &Option<Exit>| ContainerState {
            terminated: exit.as_ref().map(terminated),
            ..ContainerState::default()
        };
        if let State::Running(running) = &slot.state
            && !running.hook
        {
            let started_at = Some(api_time(running.started_at));
            let state =
                ContainerState { running: Some(ContainerStateRunning { started_at }), ..ContainerState::default() };
            return (state, ended(&slot.exit));
        }
        let stopped = self.stop.is_some();
        // A run that ended is shown until its successor starts, unless there is a reason to wait.
        let restarts = !stopped && self.may_start(index);
        let waits = slot.waiting.as_ref().filter(|_| restarts || (slot.exit.is_none() && !unknown));
        let default = Waiting {
            reason: if initializing { "PodInitializing" } else { "ContainerCreating" }.to_owned(),
            message: String::new(),
        };
        let waits = match (waits, &slot.exit) {
            (Some(waiting), _) => Some(waiting),
            (None, Some(_)) if slot.stale && restarts => Some(&default),
            (None, None) if !unknown => Some(&default),
            (None, _) => None,
        };
        match (waits, &slot.exit) {
            (Some(waiting), _) => (waiting_state(waiting), ended(&slot.exit)),
            (None, Some(_)) => (ended(&slot.exit), ended(&slot.previous)),
            (None, None) => {
                let exit = Exit::unknown("", "The container could not be located when the pod was terminated");
                (ended(&Some(exit)), ContainerState::default())
            }
        }
    }

    fn fresh_conditions(
        &self,
        spec: &PodSpec,
        old: &PodStatus,
        init: &[ContainerStatus],
        main: &[ContainerStatus],
        phase: &str,
        now: Timestamp,
    ) -> Vec<PodCondition> {
        let foreign: Vec<PodCondition> = old
            .conditions
            .iter()
            .flatten()
            .filter(|condition| !OWNED.contains(&condition.type_.as_str()))
            .cloned()
            .collect();
        let all: Vec<&ContainerStatus> = init.iter().chain(main).collect();
        let sandbox = match self.sandbox {
            // It goes with the last container.
            Sandbox::Ready if !self.has_ended() => Verdict::yes(),
            _ if self.recreated || !self.ips.is_empty() => {
                Verdict::no("PodSandboxNotReady", "pod sandbox is not ready".to_owned())
            }
            _ => Verdict::no("PodSandboxNotReady", "no pod sandbox exists".to_owned()),
        };
        let containers = containers_ready(spec, &all, phase);
        let ready = if containers.is { gates(spec, &foreign) } else { containers.clone() };
        let initialized = if self.initialized_once() { Verdict::yes() } else { initialized(spec, &all, phase) };
        let owned = [
            ("PodReadyToStartContainers", sandbox),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers),
            ("PodScheduled", Verdict::yes()),
        ];
        let mut conditions = foreign;
        for (name, verdict) in owned.into_iter().chain(self.resize_condition()) {
            let status = if verdict.is { "True" } else { "False" };
            let before = self.conditions.iter().find(|condition| condition.type_ == name);
            let since = before
                .filter(|condition| condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            conditions.push(PodCondition {
                type_: name.to_owned(),
                status: status.to_owned(),
                reason: Some(verdict.reason.to_owned()).filter(|reason| !reason.is_empty()),
                message: Some(verdict.message).filter(|message| !message.is_empty()),
                observed_generation: self.pod.metadata.generation,
                last_transition_time: Some(since.unwrap_or_else(|| api_time(now))),
                last_probe_time: None,
            });
        }
        conditions
    }

    /// Source: status_manager.go, `SetPodResizePendingCondition` and `SetPodResizeInProgressCondition`.
    fn resize_condition(&self) -> Option<(&'static str, Verdict)> {
        let verdict = |reason, message: &str| Verdict { is: true, reason, message: message.to_owned() };
        match &self.resize {
            _ if self.stop.is_some() => None,
            Resize::None => None,
            Resize::InProgress { error: None } => Some(("PodResizeInProgress", verdict("", ""))),
            Resize::InProgress { error: Some(error) } => Some(("PodResizeInProgress", verdict("Error", error))),
            Resize::Pending { reason, message } => Some(("PodResizePending", verdict(reason, message))),
        }
    }

    /// Whether a main container ever ran in this sandbox: a sidecar that restarts does not undo it.
    fn initialized_once(&self) -> bool {
        self.slots.iter().any(|slot| slot.role == Role::Main && slot.has_started()) && !self.has_ended()
    }
}

/// One address of each family, the node's primary family first. Source: `sortPodIPs`.
pub fn by_family(ips: &[String], host: &[IpAddr]) -> Vec<String> {
    let v6_first = host.first().is_some_and(IpAddr::is_ipv6);
    let family = |v6: bool| ips.iter().find(|ip| ip.contains(':') == v6).cloned();
    family(v6_first).into_iter().chain(family(!v6_first)).collect()
}

fn waiting_state(waiting: &Waiting) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(waiting.reason.clone()),
            message: Some(waiting.message.clone()).filter(|message| !message.is_empty()),
        }),
        ..ContainerState::default()
    }
}

fn terminated(exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(&exit.id).filter(|id| !id.is_empty()).map(|id| format!("coracle://{id}")),
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
        started_at: exit.started_at.map(api_time),
        finished_at: exit.finished_at.map(api_time),
        signal: None,
    }
}

fn mount_statuses(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = mounts.iter().map(|mount| {
        let read_only = mount.read_only == Some(true);
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: Some(read_only).filter(|read_only| *read_only),
            recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    Some(status.collect())
}

#[derive(Clone, Debug)]
struct Verdict {
    is: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { is: true, reason: "", message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { is: false, reason, message }
    }
}

fn named<'a>(all: &[&'a ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    all.iter().find(|status| status.name == name).copied()
}

/// A list as Go prints a slice of strings.
fn listed(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Source: generate.go, `GenerateContainersReadyCondition`.
fn containers_ready(spec: &PodSpec, all: &[&ContainerStatus], phase: &str) -> Verdict {
    match phase {
        "Failed" => return Verdict::no("PodFailed", String::new()),
        "Succeeded" => return Verdict::no("PodCompleted", String::new()),
        _ => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for container in sidecars.chain(&spec.containers) {
        match named(all, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    let parts: Vec<String> = listed("unknown", &unknown).into_iter().chain(listed("unready", &unready)).collect();
    if parts.is_empty() { Verdict::yes() } else { Verdict::no("ContainersNotReady", parts.join(", ")) }
}

/// Source: generate.go, `GeneratePodReadyCondition`.
fn gates(spec: &PodSpec, conditions: &[PodCondition]) -> Verdict {
    let unready: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match conditions.iter().find(|condition| condition.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
                Some(condition) if condition.status != "True" => {
                    Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    if unready.is_empty() { Verdict::yes() } else { Verdict::no("ReadinessGatesNotReady", unready.join(", ")) }
}

/// Source: generate.go, `GeneratePodInitializedCondition`.
fn initialized(spec: &PodSpec, all: &[&ContainerStatus], phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { is: true, reason: "PodCompleted", message: String::new() };
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in spec.init_containers.iter().flatten() {
        let done =
            |status: &ContainerStatus| if is_sidecar(container) { status.started == Some(true) } else { status.ready };
        match named(all, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !done(status) => incomplete.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    let started = spec.containers.iter().any(|container| {
        named(all, &container.name).is_some_and(|status| {
            status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        })
    });
    let parts: Vec<String> = listed("unknown", &unknown).into_iter().chain(listed("incomplete", &incomplete)).collect();
    if parts.is_empty() || started { Verdict::yes() } else { Verdict::no("ContainersNotInitialized", parts.join(", ")) }
}

fn state_of(status: &ContainerStatus) -> (bool, Option<i32>, bool, Option<i32>) {
    let state = status.state.as_ref();
    let code =
        |state: Option<&ContainerState>| state.and_then(|state| state.terminated.as_ref()).map(|end| end.exit_code);
    (
        state.is_some_and(|state| state.running.is_some()),
        code(state),
        state.is_some_and(|state| state.waiting.is_some()),
        code(status.last_state.as_ref()),
    )
}

/// Source: kubelet_pods.go, `getPhase`.
fn phase(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    terminal: bool,
    initialized: bool,
) -> &'static str {
    let all: Vec<&ContainerStatus> = init.iter().chain(main).collect();
    let (mut pending_init, mut pending_sidecars, mut init_failed) = (0, 0, false);
    let (mut unknown, mut running, mut waiting, mut stopped, mut stuck, mut succeeded) = (0, 0, 0, 0, 0, 0);
    for container in spec.init_containers.iter().flatten() {
        let Some(status) = named(&all, &container.name) else {
            if is_sidecar(container) {
                unknown += 1
            } else {
                pending_init += 1
            }
            continue;
        };
        let (runs, ended, waits, last) = state_of(status);
        if is_sidecar(container) {
            if runs {
                pending_sidecars += i32::from(status.started != Some(true));
                running += 1;
            } else if waits && last.is_none() {
                pending_sidecars += 1;
                waiting += 1;
            }
            continue;
        }
        match ended.or(if waits { last } else { None }) {
            None => pending_init += 1,
            Some(code) => init_failed |= code != 0 && !should_restart(container, spec, Role::Init, code),
        }
    }
    for container in &spec.containers {
        let Some(status) = named(&all, &container.name) else {
            unknown += 1;
            continue;
        };
        let (runs, ended, waits, last) = state_of(status);
        if runs {
            running += 1;
        } else if let Some(code) = ended.or(last) {
            stopped += 1;
            stuck += i32::from(!should_restart(container, spec, Role::Main, code));
            succeeded += i32::from(ended == Some(0));
        } else if waits {
            waiting += 1;
        } else {
            unknown += 1;
        }
    }
    if init_failed {
        return "Failed";
    }
    if pending_init > 0 || (pending_sidecars > 0 && !initialized) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        return match (terminal || stopped == stuck, stopped == succeeded) {
            (false, _) => "Running",
            (true, true) => "Succeeded",
            (true, false) => "Failed",
        };
    }
    "Pending"
}
