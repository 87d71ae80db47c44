//! Scenarios as scripts: one line an event, the effects and the resulting status underneath.

use std::fmt::Write;
use std::sync::Arc;

use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::event::Started;
use super::*;

mod change;
mod pull;

struct Script {
    machine: Machine,
    now: Timestamp,
    out: String,
    runs: u32,
}

fn pod(spec: Value) -> Pod {
    let whole = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec});
    serde_json::from_value(whole).unwrap()
}

impl Script {
    fn new(spec: Value) -> Self {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        Self { machine: Machine::new(Arc::new(pod(spec)), now), now, out: String::new(), runs: 0 }
    }

    fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let event = self.event(&words);
        let effects = self.machine.step(event, self.now);
        self.show(line, &effects);
    }

    fn event(&mut self, words: &[&str]) -> Event {
        let container = || words[1].to_owned();
        let id = |machine: &Machine, name: &str| {
            machine.slots.iter().find(|s| s.name == name).and_then(|s| s.id.clone()).unwrap_or_default()
        };
        // That of the specification, unless the line names another.
        let image = |machine: &Machine| {
            let wanted = machine.container(words[1]).and_then(|container| container.image.clone());
            words.get(2).map_or(wanted.unwrap_or_default(), |other| (*other).to_owned())
        };
        match words[0] {
            "volumes" => Event::VolumesReady,
            "no-volumes" => Event::VolumesFailed,
            "sandbox" => Event::SandboxReady { ips: vec!["10.0.0.1".to_owned()] },
            "sandbox-gone" => Event::SandboxGone,
            "volumes-gone" => Event::VolumesGone,
            "lost" => Event::SandboxLost,
            "told" => Event::EndTold,
            "image" => Event::ImageReady {
                container: container(),
                image: image(&self.machine),
                image_id: "sha256:1".to_owned(),
            },
            "no-image" => Event::ImageFailed {
                container: container(),
                image: image(&self.machine),
                volume: None,
                reason: "ErrImagePull".to_owned(),
                message: "down".to_owned(),
            },
            "found" => Event::ImageFound { container: container() },
            "no-volume-image" => Event::ImageFailed {
                container: container(),
                image: image(&self.machine),
                volume: Some("tools".to_owned()),
                reason: "ErrImagePull".to_owned(),
                message: "down".to_owned(),
            },
            "start" => {
                self.runs += 1;
                Event::Started(Started {
                    container: container(),
                    image: image(&self.machine),
                    id: format!("id{}", self.runs),
                    at: self.now,
                    user: None,
                    resources: None,
                })
            }
            "no-start" => Event::StartFailed {
                container: container(),
                image: image(&self.machine),
                reason: "CreateContainerConfigError".to_owned(),
                message: "secret \"s\" not found".to_owned(),
                exit: None,
            },
            "hook" => Event::PostStartDone { container: container(), id: id(&self.machine, words[1]), failed: None },
            "pre-stop" => Event::PreStopDone { container: container(), id: id(&self.machine, words[1]) },
            "exit" => Event::Exited {
                container: container(),
                exit: Exit {
                    id: id(&self.machine, words[1]),
                    code: words[2].parse().unwrap(),
                    reason: if words[2] == "0" { "Completed" } else { "Error" }.to_owned(),
                    message: String::new(),
                    started_at: Some(self.now),
                    finished_at: Some(self.now),
                },
            },
            "ready" | "live" | "up" => Event::Probed {
                container: container(),
                id: id(&self.machine, words[1]),
                kind: match words[0] {
                    "ready" => ProbeKind::Readiness,
                    "live" => ProbeKind::Liveness,
                    _ => ProbeKind::Startup,
                },
                healthy: words[2] == "yes",
            },
            "delete" => {
                let mut pod = Pod::clone(&self.machine.pod);
                pod.metadata.deletion_timestamp = Some(api_time(self.now));
                pod.metadata.deletion_grace_period_seconds = Some(words[1].parse().unwrap());
                Event::Updated(Arc::new(pod))
            }
            "new-image" => {
                let mut pod = Pod::clone(&self.machine.pod);
                pod.spec.as_mut().unwrap().containers[0].image = Some(words[1].to_owned());
                Event::Updated(Arc::new(pod))
            }
            "debug" => {
                let mut pod = Pod::clone(&self.machine.pod);
                let container = serde_json::from_value(json!({"name": words[1], "targetContainerName": "a"})).unwrap();
                pod.spec.as_mut().unwrap().ephemeral_containers.get_or_insert_default().push(container);
                Event::Updated(Arc::new(pod))
            }
            "wait" => {
                self.now += SignedDuration::from_secs(words[1].parse().unwrap());
                Event::Tick
            }
            other => panic!("no such event: {other}"),
        }
    }

    fn show(&mut self, line: &str, effects: &[Effect]) {
        writeln!(self.out, "{line}").unwrap();
        for effect in effects {
            let text = match effect {
                Effect::Record { reason, message, .. } => format!("{reason}: {message}"),
                Effect::EnsureImage { container } => format!("pull {container}"),
                Effect::LookForImage { container, volume } => {
                    format!("look {container} {}", volume.as_deref().unwrap_or("-"))
                }
                Effect::StartContainer { container, attempt } => format!("run {container}/{attempt}"),
                Effect::Signal { container, signal, .. } => format!("signal {container} {signal:?}"),
                Effect::StartProbe { container, kind, .. } => format!("probe {container} {kind:?}"),
                Effect::StopProbe { container, kind } => format!("unprobe {container} {kind:?}"),
                Effect::PreStop { container, .. } => format!("pre-stop {container}"),
                Effect::PostStart { container, .. } => format!("post-start {container}"),
                Effect::MountVolumes
                | Effect::Resize
                | Effect::CreateSandbox
                | Effect::RemoveSandbox
                | Effect::UnmountVolumes
                | Effect::Finish => {
                    format!("{effect:?}")
                }
            };
            writeln!(self.out, "    {text}").unwrap();
        }
        let status = self.machine.status(&[], self.now);
        let containers: Vec<String> = all_statuses(&status).map(shown).collect();
        let mut phase = status.phase.unwrap_or_default();
        if let Some(reason) = status.reason {
            write!(phase, "/{reason}").unwrap();
        }
        writeln!(self.out, "  = {phase} {}", containers.join(" ")).unwrap();
    }
}

fn shown(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap_or_default();
    let last = status
        .last_state
        .clone()
        .unwrap_or_default()
        .terminated
        .map_or(String::new(), |end| format!("<{}", end.exit_code));
    let state = match (state.waiting, state.running, state.terminated) {
        (Some(waiting), _, _) => waiting.reason.unwrap_or_default(),
        (_, Some(_), _) => "running".to_owned(),
        (_, _, Some(end)) => format!("exit{}", end.exit_code),
        _ => "?".to_owned(),
    };
    let flag = |is: bool, c: &'static str| if is { c } else { "" };
    format!(
        "{}:{state}{last}*{}{}{}",
        status.name,
        status.restart_count,
        flag(status.started == Some(true), "s"),
        flag(status.ready, "r")
    )
}

fn check(spec: Value, lines: &[&str], expect: Expect) -> Script {
    let mut script = Script::new(spec);
    for line in lines {
        script.run(line);
    }
    expect.assert_eq(&script.out);
    script
}

/// Runs the lines before the interesting ones without showing them.
fn after_start(spec: Value, quiet: &[&str], lines: &[&str], expect: Expect) -> Script {
    let mut script = Script::new(spec);
    for line in ["wait 0", "volumes", "sandbox"].iter().chain(quiet) {
        script.run(line);
    }
    script.out.clear();
    for line in lines {
        script.run(line);
    }
    expect.assert_eq(&script.out);
    script
}

fn one(more: Value) -> Value {
    let mut container = json!({"name": "a", "image": "i"});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container], "terminationGracePeriodSeconds": 30})
}

#[test]
fn a_container_starts_when_volumes_and_sandbox_are_there() {
    check(
        one(json!({})),
        &["wait 0", "sandbox", "volumes", "image a", "start a"],
        expect![[r#"
            wait 0
                MountVolumes
                CreateSandbox
              = Pending a:ContainerCreating*0
            sandbox
              = Pending a:ContainerCreating*0
            volumes
                pull a
              = Pending a:ContainerCreating*0
            image a
                run a/0
              = Pending a:ContainerCreating*0
            start a
              = Running a:running*0sr
        "#]],
    );
}

#[test]
fn crashes_back_off_and_recover() {
    let script = after_start(
        one(json!({})),
        &["image a", "start a"],
        &["exit a 1", "image a", "start a", "exit a 2", "wait 9", "wait 1", "image a", "start a", "exit a 3"],
        expect![[r#"
            exit a 1
                pull a
              = Running a:exit1*0
            image a
                run a/1
              = Running a:exit1*0
            start a
              = Running a:running<1*1sr
            exit a 2
                BackOff: Back-off restarting failed container a in pod p_n(u)
              = Running a:CrashLoopBackOff<2*1
            wait 9
              = Running a:CrashLoopBackOff<2*1
            wait 1
                pull a
              = Running a:CrashLoopBackOff<2*1
            image a
                run a/2
              = Running a:CrashLoopBackOff<2*1
            start a
              = Running a:running<2*2sr
            exit a 3
                BackOff: Back-off restarting failed container a in pod p_n(u)
              = Running a:CrashLoopBackOff<3*2
        "#]],
    );
    let message = &script.machine.slots[0].waiting.as_ref().unwrap().message;
    assert_eq!(message, "back-off 20s restarting failed container=a pod=p_n(u)");
}

#[test]
fn deletion_signals_then_kills_then_cleans_up() {
    after_start(
        one(json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}})),
        &["image a", "start a"],
        &["delete 10", "wait 4", "pre-stop a", "wait 6", "exit a 137", "told", "sandbox-gone", "volumes-gone"],
        expect![[r#"
            delete 10
                Killing: Stopping container a
                pre-stop a
              = Running a:running*0sr
            wait 4
              = Running a:running*0sr
            pre-stop a
                signal a Stop
              = Running a:running*0sr
            wait 6
                signal a Kill
              = Running a:running*0sr
            exit a 137
              = Failed a:exit137*0
            told
                RemoveSandbox
              = Failed a:exit137*0
            sandbox-gone
                UnmountVolumes
              = Failed a:exit137*0
            volumes-gone
                Finish
              = Failed a:exit137*0
        "#]],
    );
}

#[test]
fn a_shorter_grace_is_obeyed() {
    after_start(
        one(json!({})),
        &["image a", "start a", "delete 600"],
        &["delete 5", "wait 5"],
        expect![[r#"
            delete 5
              = Running a:running*0sr
            wait 5
                signal a Kill
              = Running a:running*0sr
        "#]],
    );
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let spec = json!({
        "initContainers": [
            {"name": "i", "image": "i"},
            {"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}},
        ],
        "containers": [{"name": "a", "image": "i"}],
        "restartPolicy": "OnFailure",
    });
    after_start(
        spec,
        &[],
        &[
            "image i",
            "start i",
            "exit i 0",
            "image s",
            "start s",
            "up s yes",
            "image a",
            "start a",
            "exit a 0",
            "exit s 143",
            "told",
            "sandbox-gone",
            "volumes-gone",
        ],
        expect![[r#"
            image i
                run i/0
              = Pending i:PodInitializing*0 s:PodInitializing*0 a:PodInitializing*0
            start i
              = Pending i:running*0s s:PodInitializing*0 a:PodInitializing*0
            exit i 0
                pull s
              = Pending i:exit0*0r s:PodInitializing*0 a:PodInitializing*0
            image s
                run s/0
              = Pending i:exit0*0r s:PodInitializing*0 a:PodInitializing*0
            start s
                probe s Startup
              = Pending i:exit0*0r s:running*0 a:PodInitializing*0
            up s yes
                pull a
              = Pending i:exit0*0r s:running*0sr a:PodInitializing*0
            image a
                run a/0
              = Pending i:exit0*0r s:running*0sr a:PodInitializing*0
            start a
              = Running i:exit0*0r s:running*0sr a:running*0sr
            exit a 0
                Killing: Stopping container s
                unprobe s Startup
                signal s Stop
              = Running i:exit0*0r s:running*0sr a:exit0*0
            exit s 143
                unprobe s Startup
              = Succeeded i:exit0*0r s:exit143*0 a:exit0*0
            told
                RemoveSandbox
              = Succeeded i:exit0*0r s:exit143*0 a:exit0*0
            sandbox-gone
                UnmountVolumes
              = Succeeded i:exit0*0r s:exit143*0 a:exit0*0
            volumes-gone
                Finish
              = Succeeded i:exit0*0r s:exit143*0 a:exit0*0
        "#]],
    );
}

#[test]
fn sidecars_stop_last_and_in_reverse() {
    let spec = json!({
        "initContainers": [
            {"name": "s1", "image": "i", "restartPolicy": "Always"},
            {"name": "s2", "image": "i", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a", "image": "i"}],
    });
    after_start(
        spec,
        &["image s1", "start s1", "image s2", "start s2", "image a", "start a"],
        &["delete 30", "exit a 0", "exit s2 0"],
        expect![[r#"
            delete 30
                Killing: Stopping container s1
                Killing: Stopping container s2
                Killing: Stopping container a
                signal a Stop
              = Running s1:running*0sr s2:running*0sr a:running*0sr
            exit a 0
                signal s2 Stop
              = Running s1:running*0sr s2:running*0sr a:exit0*0
            exit s2 0
                signal s1 Stop
              = Running s1:running*0sr s2:exit0*0 a:exit0*0
        "#]],
    );
}

#[test]
fn a_failed_init_container_fails_the_pod_that_never_restarts() {
    let spec = json!({
        "initContainers": [{"name": "i", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}],
        "restartPolicy": "Never",
    });
    after_start(
        spec,
        &["image i", "start i"],
        &["exit i 1"],
        expect![[r#"
            exit i 1
              = Failed i:exit1*0 a:PodInitializing*0
        "#]],
    );
}

#[test]
fn a_failed_liveness_probe_restarts_the_container() {
    let probe = json!({"exec": {"command": ["x"]}});
    after_start(
        one(
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 3}, "readinessProbe": probe}),
        ),
        &["image a"],
        &["start a", "ready a yes", "live a no", "wait 3", "exit a 137"],
        expect![[r#"
            start a
                probe a Readiness
                probe a Liveness
              = Running a:running*0s
            ready a yes
              = Running a:running*0sr
            live a no
                Killing: Container a failed liveness probe, will be restarted
                unprobe a Liveness
                unprobe a Readiness
                signal a Stop
              = Running a:running*0sr
            wait 3
                signal a Kill
              = Running a:running*0sr
            exit a 137
                unprobe a Readiness
                unprobe a Liveness
                pull a
              = Running a:running*0sr
        "#]],
    );
}

#[test]
fn a_lost_shim_begins_the_pod_anew() {
    after_start(
        one(json!({})),
        &["image a", "start a"],
        &["lost", "sandbox-gone", "sandbox", "image a", "start a"],
        expect![[r#"
            lost
                SandboxChanged: Pod sandbox changed, it will be killed and re-created.
                RemoveSandbox
              = Running a:ContainerCreating<137*0
            sandbox-gone
                CreateSandbox
              = Running a:ContainerCreating<137*0
            sandbox
                pull a
              = Running a:ContainerCreating<137*0
            image a
                run a/1
              = Running a:ContainerCreating<137*0
            start a
              = Running a:running<137*1sr
        "#]],
    );
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut spec = one(json!({}));
    spec["activeDeadlineSeconds"] = json!(60);
    after_start(
        spec,
        &["image a", "start a"],
        &["wait 59", "wait 1", "exit a 143"],
        expect![[r#"
            wait 59
              = Running a:running*0sr
            wait 1
                DeadlineExceeded: Pod was active on the node longer than the specified deadline
                Killing: Stopping container a
                signal a Stop
              = Running a:running*0sr
            exit a 143
              = Failed/DeadlineExceeded a:exit143*0
        "#]],
    );
}

#[test]
fn a_post_start_hook_holds_up_the_next_container() {
    let spec = json!({"containers": [
        {"name": "a", "image": "i", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
        {"name": "b", "image": "i"},
    ]});
    after_start(
        spec,
        &["image a"],
        &["start a", "hook a"],
        expect![[r#"
            start a
                post-start a
              = Pending a:ContainerCreating*0 b:ContainerCreating*0
            hook a
                pull b
              = Pending a:running*0sr b:ContainerCreating*0
        "#]],
    );
}

#[test]
fn deletion_waits_for_a_start_under_way() {
    after_start(
        one(json!({})),
        &["image a"],
        &["delete 30", "start a", "exit a 0"],
        expect![[r#"
            delete 30
              = Pending a:ContainerCreating*0
            start a
                Killing: Stopping container a
                signal a Stop
              = Running a:running*0
            exit a 0
              = Succeeded a:exit0*0
        "#]],
    );
}

fn running_pod() -> Pod {
    let mut pod = pod(one(json!({"readinessProbe": {"exec": {"command": ["x"]}}})));
    pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "startTime": "2026-11-23T10:00:00Z",
        "podIPs": [{"ip": "10.0.0.1"}],
        "containerStatuses": [{
            "name": "a", "image": "i", "imageID": "sha256:1", "ready": true, "started": true, "restartCount": 2,
            "containerID": "coracle://abc", "state": {"running": {"startedAt": "2026-11-23T10:00:05Z"}},
        }],
    }))
    .unwrap();
    pod
}

fn adopt(exit: Option<Exit>, alive: bool) -> Script {
    adopt_from("i", exit, alive)
}

fn adopt_from(image: &str, exit: Option<Exit>, alive: bool) -> Script {
    let now: Timestamp = "2026-11-23T11:00:00Z".parse().unwrap();
    let containers = vec![AdoptedContainer {
        name: "a".to_owned(),
        image: Some(image.to_owned()),
        id: "abc".to_owned(),
        attempt: 2,
        started_at: "2026-11-23T10:00:05Z".parse().unwrap(),
        exit,
    }];
    let found =
        if alive { Adopted { sandbox: Some(vec!["10.0.0.1".to_owned()]), containers } } else { Adopted::default() };
    let machine = Machine::adopt(Arc::new(running_pod()), found, now);
    let mut script = Script { machine, now, out: String::new(), runs: 0 };
    for line in ["wait 0", "volumes"] {
        script.run(line);
    }
    script
}

#[test]
fn adoption_changes_nothing() {
    let script = adopt(None, true);
    expect![[r#"
        wait 0
            MountVolumes
          = Running a:running*2sr
        volumes
            probe a Readiness
          = Running a:running*2sr
    "#]]
    .assert_eq(&script.out);
}

#[test]
fn an_exit_while_nobody_watched_is_known() {
    let exit = Exit {
        id: "abc".to_owned(),
        code: 7,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at: None,
        finished_at: None,
    };
    let script = adopt(Some(exit), true);
    expect![[r#"
        wait 0
            MountVolumes
          = Running a:exit7*2
        volumes
            pull a
          = Running a:exit7*2
    "#]]
    .assert_eq(&script.out);
}

#[test]
fn a_reboot_starts_afresh() {
    let mut script = adopt(None, false);
    script.run("sandbox");
    expect![[r#"
        wait 0
            MountVolumes
            CreateSandbox
          = Running a:ContainerCreating<137*2
        volumes
          = Running a:ContainerCreating<137*2
        sandbox
            pull a
          = Running a:ContainerCreating<137*2
    "#]]
    .assert_eq(&script.out);
}

#[test]
fn rejection_is_told_and_nothing_runs() {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut machine = Machine::reject(Arc::new(pod(one(json!({})))), "OutOfcpu", "too much", now);
    let effects = machine.step(Event::Tick, now);
    assert_eq!(effects, [], "nothing is made");
    let status = machine.status(&[], now);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(machine.step(Event::EndTold, now), [Effect::RemoveSandbox], "what an earlier life left is removed");
}

#[test]
fn conditions_name_what_is_missing() {
    let mut spec = one(json!({"readinessProbe": {"exec": {"command": ["x"]}}}));
    spec["readinessGates"] = json!([{"conditionType": "example.com/lb"}]);
    let mut script = Script::new(spec);
    let mut shown = String::new();
    for line in ["wait 0", "volumes", "sandbox", "image a", "start a", "ready a yes"] {
        script.run(line);
        let status = script.machine.status(&[], script.now);
        let conditions = status.conditions.unwrap().into_iter().filter(|condition| condition.status == "False");
        let conditions: Vec<String> = conditions
            .map(|c| format!("{} {} {}", c.type_, c.reason.unwrap_or_default(), c.message.unwrap_or_default()))
            .collect();
        writeln!(shown, "{line}: {}", conditions.join("; ")).unwrap();
    }
    expect![[r#"
        wait 0: PodReadyToStartContainers PodSandboxNotReady no pod sandbox exists; Ready ContainersNotReady containers with unready status: [a]; ContainersReady ContainersNotReady containers with unready status: [a]
        volumes: PodReadyToStartContainers PodSandboxNotReady no pod sandbox exists; Ready ContainersNotReady containers with unready status: [a]; ContainersReady ContainersNotReady containers with unready status: [a]
        sandbox: Ready ContainersNotReady containers with unready status: [a]; ContainersReady ContainersNotReady containers with unready status: [a]
        image a: Ready ContainersNotReady containers with unready status: [a]; ContainersReady ContainersNotReady containers with unready status: [a]
        start a: Ready ContainersNotReady containers with unready status: [a]; ContainersReady ContainersNotReady containers with unready status: [a]
        ready a yes: Ready ReadinessGatesNotReady corresponding condition of pod readiness gate "example.com/lb" does not exist.
    "#]]
    .assert_eq(&shown);
}

#[test]
fn an_ephemeral_container_joins_a_pod_that_runs_and_runs_once() {
    let script = after_start(
        one(json!({})),
        &["image a", "start a"],
        &["debug look", "image look", "start look", "exit look 1", "wait 600", "exit a 0"],
        expect![[r#"
            debug look
                pull look
              = Running a:running*0sr look:ContainerCreating*0
            image look
                run look/0
              = Running a:running*0sr look:ContainerCreating*0
            start look
              = Running a:running*0sr look:running*0s
            exit look 1
              = Running a:running*0sr look:exit1*0
            wait 600
              = Running a:running*0sr look:exit1*0
            exit a 0
                pull a
              = Running a:exit0*0 look:exit1*0
        "#]],
    );
    assert_eq!(script.machine.target_of("look").as_deref(), Some("id1"));
}
