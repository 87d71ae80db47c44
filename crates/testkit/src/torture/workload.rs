//! What runs on the cluster under torture: pods that stay, pods that come and go, routes that change, and browsers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::checker::Violation;
use super::dice::Dice;
use super::load::{NAMESPACE, REQUEST, Round};
use super::plan::VICTIMS;
use crate::host::eventually;
use crate::rack::{GREETING, WEBSITE};
use crate::survival::is_ready;
use crate::web::{Answer, Api, KeptAlive, Web};

const BUSYBOX: &str = "docker.io/library/busybox:1.37.0-glibc";
/// The pods of the namespace.
pub const PODS: &str = "/api/v1/namespaces/torture/pods";
const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/rack/ingresses";
const SERVICES: &str = "/api/v1/namespaces/rack/services";
/// Where pods leave signs of their runs, on the host.
const SIGNS: &str = "/mnt/signs";
/// How long a pod may take from its creation to its end, on a machine that also builds, with a server that is killed meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const EXITS: &str = "a pod's end is told as it was";
pub const RUNS_ONCE: &str = "no container runs again that was not killed";
pub const LOGS: &str = "no line of a log is lost or doubled";
pub const INGRESS: &str = "no request through the ingress fails while the edge lives";

/// The names of the pods that stay.
pub fn steady(n: usize) -> String {
    format!("steady-{n}")
}

fn pod(name: &str, restart_policy: &str, script: &str, volumes: &Value) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap_or("v"))}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "restartPolicy": restart_policy, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": true,
            "volumes": volumes,
            "containers": [{
                "name": "c", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
                "volumeMounts": mounts,
            }],
        },
    })
}

/// Makes the namespace and the pods that stay, and waits until they are Ready: they count in their logs.
///
/// # Errors
/// When something is refused or not Ready in time.
pub fn prepare(api: &Api) -> Result<()> {
    api.post("/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))?;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": NAMESPACE}, "data": {"a": "b"},
    });
    api.post("/api/v1/namespaces/torture/configmaps", &settings)?;
    let counting = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.05; done";
    for n in 0..=VICTIMS {
        let volumes = json!([{"name": "scratch", "emptyDir": {"medium": "Memory"}}, {"name": "settings", "configMap": {"name": "settings"}}]);
        eventually(PATIENCE, "the namespace's service account", || {
            Ok(api.post(PODS, &pod(&steady(n), "Always", counting, &volumes)).ok())
        })?;
    }
    for n in 0..=VICTIMS {
        let path = format!("{PODS}?fieldSelector=metadata.name%3D{}", steady(n));
        api.watch_until(&path, is_ready).with_context(|| format!("{} is not Ready", steady(n)))?;
    }
    Ok(())
}

/// A request on a connection of its own that is asked again until it is answered, at most until [`PATIENCE`] is over.
fn insist<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut last = String::new();
    eventually(PATIENCE, what, || match ask() {
        Ok(answer) => Ok(answer),
        Err(error) => {
            last = format!("{error:#}");
            std::thread::sleep(Duration::from_millis(50));
            Ok(None)
        }
    })
    .with_context(|| format!("the last answer: {last}"))
}

/// Threads that make pods which end with a code of their own, look at it, and delete them.
pub fn start_brief_pods(round: &Round) -> Vec<JoinHandle<Result<Vec<Violation>>>> {
    const THREADS: u64 = 2;
    let thread = |n| {
        let round = round.clone();
        std::thread::spawn(move || {
            let mut violations = Vec::new();
            let mut dice = Dice::of(round.seed, &format!("pods {n}"), round.number);
            for turn in 0_u64.. {
                if round.is_over() {
                    break;
                }
                let name = format!("brief-{}-{n}-{turn}", round.number);
                let code = dice.between(0, 40);
                let pause = Duration::from_millis(dice.between(0, 500));
                violations.extend(brief_pod(&round.api, &name, code)?);
                round.rest(pause);
            }
            Ok(violations)
        })
    };
    (0..THREADS).map(thread).collect()
}

fn brief_pod(api: &Api, name: &str, code: u64) -> Result<Option<Violation>> {
    let volumes = json!([
        {"name": "signs", "hostPath": {"path": SIGNS, "type": "DirectoryOrCreate"}}, {"name": "scratch", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "settings"}},
    ]);
    let script = format!("echo x >> /signs/{name}; sleep 0.1; exit {code}");
    let object = pod(name, "Never", &script, &volumes);
    let path = format!("{PODS}/{name}");
    insist("a pod to be created", || match api.post(PODS, &object) {
        Ok(_) => Ok(Some(())),
        // An earlier attempt went through, although its answer did not.
        Err(error) => api.get(&path).map(|_| Some(())).or(Err(error)),
    })?;
    let ended = insist("a brief pod to end", || {
        let pod = api.get(&path)?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then_some(pod))
    })?;
    let status = &ended["status"]["containerStatuses"][0];
    let (exit, restarts) = (&status["state"]["terminated"]["exitCode"], &status["restartCount"]);
    let is_right = *exit == code && *restarts == 0;
    insist("a pod to be deleted", || match api.delete(&format!("{path}?gracePeriodSeconds=0")) {
        Ok(_) => Ok(Some(())),
        Err(error) if format!("{error:#}").contains("not found") => Ok(Some(())),
        Err(error) => Err(error),
    })?;
    Ok((!is_right).then(|| Violation {
        rule: EXITS,
        what: format!(
            "{name} ended with {code}, its status says {exit} after {restarts} restarts: {}",
            ended["status"]
        ),
    }))
}

/// A thread that adds and removes routes and services, so that the edge and the kernel get new tables.
pub fn start_routes(round: &Round) -> JoinHandle<Result<()>> {
    let round = round.clone();
    std::thread::spawn(move || {
        let mut dice = Dice::of(round.seed, "routes", round.number);
        while !round.is_over() {
            let name = format!("more-{}", dice.roll(4));
            let path = format!("{INGRESSES}/{name}");
            let ingress = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name, "namespace": "rack"},
                "spec": {"ingressClassName": "nginx", "rules": [{"host": format!("{name}.rack.example"), "http": {"paths": [{
                    "path": "/", "pathType": "Prefix",
                    "backend": {"service": {"name": "website", "port": {"name": "http"}}},
                }]}}]},
            });
            // It is there, or not, or main is: another one comes soon.
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "rack"},
                "spec": {"selector": {"app": "website"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
            });
            let service_path = format!("{SERVICES}/{name}");
            let _ = match dice.roll(4) {
                0 => round.api.post(INGRESSES, &ingress),
                1 => round.api.delete(&path),
                2 => round.api.post(SERVICES, &service),
                _ => round.api.delete(&service_path),
            };
            round.rest(Duration::from_millis(dice.between(100, 500)));
        }
        for path in (0..4).flat_map(|n| [format!("{INGRESSES}/more-{n}"), format!("{SERVICES}/more-{n}")]) {
            insist("the routes to be removed", || match round.api.delete(&path) {
                Ok(_) => Ok(Some(())),
                Err(error) if format!("{error:#}").contains("not found") => Ok(Some(())),
                Err(error) => Err(error),
            })?;
        }
        Ok(())
    })
}

/// A request of a browser that was not answered as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When its connection was made.
    pub opened: Instant,
    pub ended: Instant,
    pub what: String,
}

/// When there was no edge, or nobody who held its ports: from, to.
pub type Outage = (Instant, Instant);

/// The failures that no outage excuses: whoever was connected when the edge died, and whoever came when main was dead as well.
pub fn unexcused(failures: &[Failure], outages: &[Outage]) -> Vec<Violation> {
    let is_excused =
        |failure: &&Failure| outages.iter().any(|(from, to)| failure.opened <= *to && *from <= failure.ended);
    let others = failures.iter().filter(|failure| !is_excused(failure));
    others.map(|failure| Violation { rule: INGRESS, what: failure.what.clone() }).collect()
}

/// Browsers that load the website over HTTPS; every second one keeps its connection.
pub struct Browsers {
    threads: Vec<JoinHandle<(u64, Vec<Failure>)>>,
}

impl Browsers {
    pub fn start(round: &Round, web: &Web, address: SocketAddr) -> Self {
        const BROWSERS: u64 = 6;
        const REST: Duration = Duration::from_millis(50);
        let web = web.with_patience(REQUEST);
        let browser = |n: u64| {
            let (round, web) = (round.clone(), web.clone());
            std::thread::spawn(move || {
                let (mut served, mut failures) = (0, Vec::new());
                let mut kept: Option<(Instant, KeptAlive)> = None;
                while !round.is_over() {
                    let began = Instant::now();
                    let opened = kept.as_ref().map_or(began, |(opened, _)| *opened);
                    let answer = if n.is_multiple_of(2) {
                        on_kept(&mut kept, began, &web, address)
                    } else {
                        web.get(address, WEBSITE, "/")
                    };
                    match answer.and_then(check) {
                        Ok(()) => served += 1,
                        Err(error) => {
                            let what = format!("browser {n}, after {:?}: {error:#}", began.elapsed());
                            failures.push(Failure { opened, ended: Instant::now(), what });
                            kept = None;
                        }
                    }
                    round.rest(REST);
                }
                (served, failures)
            })
        };
        Self { threads: (0..BROWSERS).map(browser).collect() }
    }

    /// How many requests were answered, and what failed.
    ///
    /// # Errors
    /// When a browser panicked.
    pub fn join(self) -> Result<(u64, Vec<Failure>)> {
        let mut all = (0, Vec::new());
        for thread in self.threads {
            let (served, failures) = thread.join().ok().context("a browser panicked")?;
            all.0 += served;
            all.1.extend(failures);
        }
        Ok(all)
    }
}

fn on_kept(kept: &mut Option<(Instant, KeptAlive)>, now: Instant, web: &Web, address: SocketAddr) -> Result<Answer> {
    let (_, connection) = match kept {
        Some(kept) => kept,
        None => kept.insert((now, web.open(address, WEBSITE)?)),
    };
    connection.get("/")
}

fn check(answer: Answer) -> Result<()> {
    if answer.status == 200 && answer.body.contains(GREETING) {
        return Ok(());
    }
    bail!("answered with {answer:?}")
}

/// One run of a container, as the API tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub restarts: u64,
}

/// The containers of a namespace's pods by `POD/CONTAINER`.
///
/// # Errors
/// When the API does not answer.
pub fn runs(api: &Api, namespace: &str) -> Result<BTreeMap<String, Run>> {
    let pods = api.get(&format!("/api/v1/namespaces/{namespace}/pods"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_pod = |pod: &Value| {
        let name = text(&pod["metadata"]["name"]);
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.into_iter().map(move |status| {
            let restarts = status["restartCount"].as_u64().unwrap_or_default();
            (format!("{name}/{}", text(&status["name"])), Run { id: text(&status["containerID"]), restarts })
        })
    };
    Ok(pods["items"].as_array().into_iter().flatten().flat_map(of_pod).collect())
}

/// What a container's runs say: `kills` is how often its shim was killed.
pub fn restarted(name: &str, before: &Run, after: Option<&Run>, kills: u64) -> Option<Violation> {
    let what = match after {
        None => format!("{name} is gone"),
        Some(after) if kills == 0 && after != before => format!("{name} was {before:?} and is {after:?}"),
        // One that was killed again before it ran did not run in between.
        Some(after) if !(before.restarts + kills.min(1)..=before.restarts + kills).contains(&after.restarts) => {
            format!("{name} was killed {kills} times, was {before:?} and is {after:?}")
        }
        Some(_) => return None,
    };
    Some(Violation { rule: RUNS_ONCE, what })
}

/// What a pod that counts has logged since it was started: every number once.
pub fn counted(name: &str, log: &str) -> Option<Violation> {
    let wrong = log.lines().zip(0_u64..).find(|(line, n)| line.parse() != Ok(*n));
    wrong.map(|(line, n)| Violation { rule: LOGS, what: format!("{name} logged {line:?} where {n} was to come") })
}

/// How often each brief pod has run, by the signs that it left.
pub fn signs(listed: &str) -> Vec<Violation> {
    let lines = listed.lines().filter_map(|line| line.trim().split_once(' '));
    let twice = lines.filter(|(count, name)| *count != "1" && *name != "total");
    twice.map(|(count, name)| Violation { rule: RUNS_ONCE, what: format!("{name} ran {count} times") }).collect()
}

/// Moments of faults that excuse failures, shared with who makes them.
#[derive(Clone, Default)]
pub struct Outages(Arc<Mutex<Vec<Outage>>>);

impl Outages {
    pub fn add(&self, from: Instant, to: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((from, to));
    }

    pub fn all(&self) -> Vec<Outage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_connected_when_the_edge_died_may_fail() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let failure = |opened, ended| Failure { opened: at(opened), ended: at(ended), what: String::new() };
        let outages = [(at(10), at(12))];
        assert_eq!(unexcused(&[failure(5, 11), failure(11, 11), failure(9, 20)], &outages).len(), 0);
        assert_eq!(unexcused(&[failure(5, 9), failure(13, 14)], &outages).len(), 2);
    }

    #[test]
    fn a_container_restarts_as_often_as_it_was_killed() {
        let run = |id: &str, restarts| Run { id: id.to_owned(), restarts };
        let check = |after: Option<Run>, kills| restarted("p/c", &run("a", 1), after.as_ref(), kills).is_none();
        assert!(check(Some(run("a", 1)), 0));
        assert!(check(Some(run("b", 2)), 1));
        assert!(!check(Some(run("b", 2)), 0));
        assert!(!check(Some(run("b", 1)), 0));
        assert!(!check(Some(run("b", 3)), 1));
        assert!(!check(None, 0));
    }

    #[test]
    fn counting_leaves_no_gap() {
        assert_eq!(counted("p", "0\n1\n2\n"), None);
        assert!(counted("p", "0\n2\n").is_some());
        assert!(counted("p", "0\n1\n1\n").is_some());
    }

    #[test]
    fn a_brief_pod_leaves_one_sign() {
        assert_eq!(signs("   1 brief-0\n   1 brief-1\n   2 total\n"), []);
        assert_eq!(signs("   2 brief-0\n   2 total\n").len(), 1);
    }
}
