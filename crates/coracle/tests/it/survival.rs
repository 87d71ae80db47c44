//! The roles survive each other: main, edge and shims are killed with -9 on the example rack, one after the other and in the middle
//! of their work, and nothing notices that must not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufRead;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::host::{Lab, eventually};
use testkit::load::Load;
use testkit::netns::within;
use testkit::rack::{GREETING, Rack, WEBSITE};
use testkit::survival::{PODS, Run, is_ready, kill_process};
use testkit::web::Api;

use crate::cluster::{BUSYBOX, CORACLE, guard};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/rack/deployments";
/// How long a request, and a step of the cluster, may take on a machine that also builds.
const REQUEST: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after the next main is up nothing may have changed.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// Tells this binary, started anew, under which name to start a rack and to wait for its death.
const OWNER: &str = "CORACLE_TEST_RACK_OWNER";

/// A rack without workloads, removed even when this process is killed.
fn machine() -> Rack {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("s{:05}{n:02}", std::process::id() % 100_000);
    let mut rack = Rack::prepare(&name, Path::new(CORACLE), false).unwrap();
    guard(&rack.lab).unwrap();
    rack.start().unwrap_or_else(|error| panic!("{error:#}"));
    rack
}

/// The example rack, with both sites answering.
fn rack() -> Rack {
    let rack = machine();
    rack.apply().and_then(|_| rack.check_sites()).unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
    rack
}

fn log(rack: &Rack) -> String {
    fs::read_to_string(rack.log()).unwrap_or_default()
}

/// A pod of one container that runs a script; a restart policy of its own.
fn pod(name: &str, restart_policy: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "rack"},
        "spec": {
            "restartPolicy": restart_policy, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "volumes": [{"name": "signs", "hostPath": {"path": "/mnt/signs", "type": "DirectoryOrCreate"}}],
            "containers": [{
                "name": "c", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "signs", "mountPath": "/signs"}],
            }],
        },
    })
}

/// A Deployment of pods like [`pod`]'s.
fn deployment(name: &str, replicas: u64) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "rack"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod(name, "Always", "exec sleep 1000")["spec"]},
        },
    })
}

/// Waits until one pod is as wanted.
#[track_caller]
fn until(api: &Api, name: &str, wanted: impl Fn(&Value) -> bool) {
    let path = format!("{PODS}?fieldSelector=metadata.name%3D{name}");
    api.watch_until(&path, wanted).unwrap_or_else(|error| panic!("{name}: {error:#}: {:#}", api.get(&path).unwrap()));
}

#[test]
fn nothing_notices_that_main_is_killed() {
    let mut rack = rack();
    let counting = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.02; done";
    let ending = "while ! test -e /signs/end; do sleep 0.02; done; exit 7";
    for pod in [pod("counter", "Always", counting), pod("ender", "Never", ending)] {
        rack.api().post(PODS, &pod).unwrap();
    }
    until(rack.api(), "counter", is_ready);
    until(rack.api(), "ender", is_ready);
    let ender = rack.api().get(&format!("{PODS}/ender")).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let before = rack.runs().unwrap();
    let slices = slices(rack.api());
    let watching = Watching::start(rack.api());
    let counted = numbers(rack.api(), "counter");

    let load = Load::start(&rack.web().with_patience(REQUEST), rack.ingress(443), WEBSITE, GREETING, 50);
    eventually(PATIENCE, "every client to be served", || Ok((load.served() >= 200).then_some(()))).unwrap();
    rack.kill_main().unwrap();
    let when_killed = load.served();
    assert!(!processes_in(&cgroups(&rack), &ender).is_empty());
    rack.lab.host(0).run(&["touch", "/mnt/signs/end"]).unwrap();
    eventually(PATIENCE, "the pod to end", || Ok(processes_in(&cgroups(&rack), &ender).is_empty().then_some(())))
        .unwrap();
    eventually(
        PATIENCE,
        "the site to be served without main",
        || Ok((load.served() > when_killed + 100).then_some(())),
    )
    .unwrap();
    let back = rack.start().unwrap();
    let when_back = load.served();
    until(rack.api(), "ender", |pod| pod["status"]["phase"] == "Failed");
    // Time for a wrong idea of the next main to show.
    std::thread::sleep(AFTERWARDS);
    let seen = load.stop().unwrap();

    println!(
        "main: back after {back:?}; {} requests, {} of them without main, slowest {:?}, {} failed",
        seen.served,
        when_back - when_killed,
        seen.slowest,
        seen.failures.len()
    );
    assert!(seen.failures.is_empty(), "{}\n{}", seen.failures.join("\n"), log(&rack));
    let mut still = before.clone();
    still.retain(|name, _| !name.starts_with("ender/"));
    assert_eq!(rack.runs().unwrap(), still);
    assert_eq!(self::slices(rack.api()), slices);
    assert_eq!(watching.wrong(), Vec::<String>::new());
    let ended = rack.api().get(&format!("{PODS}/ender")).unwrap();
    let terminated = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(7), &json!("Error")), "{ended:#}");
    let all = numbers(rack.api(), "counter");
    assert!(all.len() > counted.len() + 100, "{} lines before, {} after", counted.len(), all.len());
    assert_eq!(all, (0..all.len()).collect::<Vec<_>>(), "lines were lost or doubled");
}

/// What a pod that counts has logged.
fn numbers(api: &Api, pod: &str) -> Vec<usize> {
    let answer = api.get(&format!("{PODS}/{pod}/log")).unwrap();
    answer.as_str().unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
}

/// The endpoints of the example's services as they are stored: who writes them anew changes the resource version.
fn slices(api: &Api) -> BTreeMap<String, (String, Value)> {
    let list = api.get("/apis/discovery.k8s.io/v1/namespaces/rack/endpointslices").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().into_iter().flatten();
    items
        .map(|slice| {
            let meta = &slice["metadata"];
            (text(&meta["name"]), (text(&meta["resourceVersion"]), slice["endpoints"].clone()))
        })
        .collect()
}

/// Watches of pods and endpoints that connect anew when main comes back.
struct Watching {
    stop: Arc<AtomicBool>,
    wrong: Arc<Mutex<Vec<String>>>,
}

/// Whether an object is as it must be all the time.
type IsRight = fn(&Value) -> bool;

impl Watching {
    fn start(api: &Api) -> Self {
        let watching = Self { stop: Arc::default(), wrong: Arc::default() };
        let is_right: [(&str, IsRight); 2] = [
            ("/api/v1/namespaces/rack/pods?labelSelector=app", is_ready),
            ("/apis/discovery.k8s.io/v1/namespaces/rack/endpointslices", has_ready_endpoint),
        ];
        for (path, is_right) in is_right {
            let (api, stop, wrong) = (api.clone(), watching.stop.clone(), watching.wrong.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let ended = api.watch_until(path, |object| {
                        if !is_right(object) {
                            wrong.lock().unwrap().push(object.to_string());
                        }
                        stop.load(Ordering::Relaxed)
                    });
                    if ended.is_err() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        watching
    }

    fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn has_ready_endpoint(slice: &Value) -> bool {
    let endpoints = slice["endpoints"].as_array();
    let of_other_family = slice["addressType"] == "IPv6" && endpoints.is_none_or(Vec::is_empty);
    of_other_family || endpoints.into_iter().flatten().any(|endpoint| endpoint["conditions"]["ready"] == true)
}

/// The processes of a pod, or with `""` of all that a rack runs.
fn processes_in(groups: &[PathBuf], uid: &str) -> BTreeSet<u32> {
    let of_pod = groups.iter().filter(|group| group.to_string_lossy().contains(uid));
    let listed = of_pod.map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default());
    listed.flat_map(|pids| pids.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Every cgroup of a rack, in every hierarchy.
fn cgroups(rack: &Rack) -> Vec<PathBuf> {
    cgroups_below(Path::new(&rack.lab.host(0).cgroup_root))
}

fn cgroups_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
        walk(&hierarchy.join(root), &mut found);
    }
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    if dir.is_dir() {
        found.push(dir.to_owned());
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

#[test]
fn connections_wait_for_the_next_edge() {
    let mut rack = rack();
    let before = rack.runs().unwrap();
    let services = rack.api().get("/api/v1/namespaces/kube-system/services").unwrap();
    let dns = services["items"].as_array().into_iter().flatten().find_map(|service| {
        (service["metadata"]["name"] == "kube-dns").then(|| service["spec"]["clusterIP"].as_str().unwrap().to_owned())
    });
    let dns: SocketAddr = format!("{}:53", dns.expect("the service kube-dns")).parse().unwrap();
    assert_eq!(resolve(&rack, dns).unwrap().1, 1, "the cluster's own name has an address");
    // Twice, so that one that has hardly begun is replaced as well.
    for round in 1..=2 {
        replace_edge_under_load(&rack, dns, &format!("round {round}"));
    }
    // An edge that outlived its main: the next main holds the ports as well.
    rack.restart_main().unwrap();
    eventually(PATIENCE, "the next main to know the edge", || Ok(log(&rack).contains("goes on").then_some(())))
        .unwrap();
    replace_edge_under_load(&rack, dns, "after main");
    // Nobody is left to hold the ports: the next main makes them anew.
    rack.kill_main().unwrap();
    rack.kill_edge().unwrap();
    rack.start().unwrap_or_else(|error| panic!("{error:#}"));
    rack.check_sites().unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
    assert_eq!(resolve(&rack, dns).unwrap().1, 1);
    assert_eq!(rack.runs().unwrap(), before);
}

/// Kills the edge: whoever connects or asks while there is none is answered by the next.
#[track_caller]
fn replace_edge_under_load(rack: &Rack, dns: SocketAddr, when: &str) {
    let edge = rack.pid("edge").unwrap();
    rack.kill_edge().unwrap();
    let dead = Instant::now();
    // Some come at once, others a little later.
    let client = |n: u64| {
        std::thread::sleep(Duration::from_millis(10 * n));
        let answer = rack.web().with_patience(REQUEST).get(rack.ingress(443), WEBSITE, "/");
        answer.map(|answer| (dead.elapsed(), answer.status))
    };
    let (answers, resolved) = std::thread::scope(|scope| {
        let resolving = scope.spawn(|| resolve(rack, dns));
        let clients: Vec<_> = (0..20).map(|n| scope.spawn(move || client(n))).collect();
        let answers: Result<Vec<_>> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        (answers, resolving.join().unwrap())
    });
    let (resolved_after, records) = resolved.unwrap_or_else(|error| panic!("{when}: {error:#}\n{}", log(rack)));
    assert_eq!(records, 1, "{when}");
    let answers = answers.unwrap_or_else(|error| panic!("{when}: {error:#}\n{}", log(rack)));
    assert!(answers.iter().all(|(_, status)| *status == 200), "{when}: {answers:?}");
    assert_ne!(rack.pid("edge").unwrap(), edge, "{when}");
    let first = answers.iter().map(|(after, _)| *after).min().unwrap();
    println!("edge, {when}: first answer {first:?} after its death, DNS {resolved_after:?}");
}

/// Asks a resolver over UDP, once, for the API's name: how long it took, and how many records came.
fn resolve(rack: &Rack, resolver: SocketAddr) -> Result<(Duration, u16)> {
    let socket = within(&rack.lab.host_netns(0), || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.set_read_timeout(Some(REQUEST))?;
    socket.connect(resolver)?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let began = Instant::now();
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("no answer")?;
    anyhow::ensure!(length > 12 && answer[..2] == query[..2] && answer[3] & 15 == 0, "{:?}", &answer[..length]);
    Ok((began.elapsed(), u16::from_be_bytes([answer[6], answer[7]])))
}

#[test]
fn a_killed_shim_restarts_its_pod_alone() {
    let mut rack = rack();
    let before = rack.runs().unwrap();
    let (name, uid) = rack.pod_of("website").unwrap();
    let took = rack.replace_shim("website").unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
    println!("shim: pod Ready after {took:?}");
    assert_eq!(rack.pod_of("website").unwrap(), (name.clone(), uid));
    let restarts: BTreeMap<_, _> = rack
        .runs()
        .unwrap()
        .into_iter()
        .map(|(key, run)| (key.clone(), run.restarts - before[&key].restarts))
        .collect();
    assert_eq!(restarts.values().sum::<u64>(), 1, "{restarts:?}");
    let events = rack.api().get("/api/v1/namespaces/rack/events").unwrap();
    let of_pod =
        events["items"].as_array().unwrap().iter().filter(|event| event["involvedObject"]["name"] == name.as_str());
    let reasons: Vec<&str> = of_pod.filter_map(|event| event["reason"].as_str()).collect();
    assert!(reasons.contains(&"SandboxChanged"), "{reasons:?}");
    rack.check_sites().unwrap();

    // One that dies while there is no main is missed by the next.
    let before = rack.runs().unwrap();
    let (name, uid) = rack.pod_of("komga").unwrap();
    let shim = rack.shim_of(&uid).unwrap();
    rack.kill_main().unwrap();
    kill_process(shim).unwrap();
    rack.start().unwrap_or_else(|error| panic!("{error:#}"));
    until(rack.api(), &name, |pod| is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    let changed = |(key, run): (String, Run)| (before[&key] != run).then_some(key);
    let changed: Vec<String> = rack.runs().unwrap().into_iter().filter_map(changed).collect();
    assert_eq!(changed, [format!("{name}/komga")]);
    rack.check_sites().unwrap();
}

/// A stream of numbers that a seed decides.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What lies on the host by the uid that it belongs to.
fn inventory(rack: &Rack) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let host = rack.lab.host(0);
    let names = |dir: &str| -> Result<BTreeSet<String>> {
        Ok(host.run(&["sh", "-c", &format!("ls {dir} 2>/dev/null || true")])?.lines().map(str::to_owned).collect())
    };
    let mounts = host.run(&["cat", "/proc/self/mounts"])?;
    let after_pods = |line: &str| {
        let path = line.split(' ').nth(1)?;
        let (_, rest) = path.split_once("/pods/")?;
        rest.split('/').next().map(str::to_owned)
    };
    let groups = cgroups(rack);
    let pod_groups =
        groups.iter().filter_map(|group| group.file_name()?.to_str()?.strip_prefix("pod").map(str::to_owned));
    Ok(BTreeMap::from([
        ("run directories", names("/run/coracle/pods")?),
        ("volumes", names("/var/lib/kubelet/pods")?),
        ("logs", names("/var/log/pods")?.iter().filter_map(|n| n.rsplit('_').next().map(str::to_owned)).collect()),
        ("mounts", mounts.lines().filter_map(after_pods).collect()),
        ("cgroups", pod_groups.filter(|uid| uid != "s").collect()),
    ]))
}

/// The pods' links on the host.
fn links(rack: &Rack) -> Result<Vec<String>> {
    let printed = rack.lab.host(0).run(&["ip", "-o", "link"])?;
    let names = printed.lines().filter_map(|line| line.split(' ').nth(1));
    Ok(names.filter(|name| name.starts_with("cor")).map(str::to_owned).collect())
}

#[test]
fn whatever_main_was_doing_when_killed_is_brought_to_its_end() {
    const ROUNDS: usize = 10;
    let mut dice = Dice(0x5eed_c0de);
    let mut rack = machine();
    rack.api()
        .post("/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rack"}}))
        .unwrap();
    rack.api().post(DEPLOYMENTS, &deployment("sized", 1)).unwrap();
    let mut made = Vec::new();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let mut actions = Vec::new();
        for n in 0..3 {
            let name = format!("p{round}-{n}");
            actions.push((dice.roll(40), pod(&name, "Always", "exec sleep 1000")));
            made.push(name);
        }
        let doomed: Vec<String> =
            (0..2).map(|_| made[usize::try_from(dice.roll(made.len() as u64)).unwrap()].clone()).collect();
        let graces: Vec<u64> = doomed.iter().map(|_| dice.roll(2)).collect();
        let replicas = dice.roll(4);
        let fatal = Duration::from_millis(dice.roll(400));
        let api = rack.api().clone();
        // Requests fail once main is dead, as they should: what was asked for until then counts.
        let asking = std::thread::spawn(move || {
            for (pause, pod) in actions {
                let _ = api.post(PODS, &pod);
                std::thread::sleep(Duration::from_millis(pause));
            }
            let _ = api.merge(&format!("{DEPLOYMENTS}/sized/scale"), &json!({"spec": {"replicas": replicas}}));
            for (name, grace) in doomed.iter().zip(graces) {
                let _ = api.delete(&format!("{PODS}/{name}?gracePeriodSeconds={grace}"));
            }
        });
        std::thread::sleep(fatal);
        rack.kill_main().unwrap();
        asking.join().unwrap();
        times.push(rack.start().unwrap_or_else(|error| panic!("round {round}: {error:#}")));
    }
    times.sort();
    println!(
        "main: back after {:?} (median of {ROUNDS}, killed at work), at most {:?}",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
    let is_done = |deployment: &Value| {
        let (spec, status) = (&deployment["spec"], &deployment["status"]);
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && count(&status["replicas"]) == count(&spec["replicas"])
            && count(&status["readyReplicas"]) == count(&spec["replicas"])
    };
    rack.api().watch_until(DEPLOYMENTS, is_done).unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
    settles(&rack);
    // None at all is not told.
    let scale = rack.api().get(&format!("{DEPLOYMENTS}/sized/scale")).unwrap();
    let replicas = scale["spec"]["replicas"].as_u64().unwrap_or_default();
    let pods = rack.api().get(&format!("{PODS}?labelSelector=app%3Dsized")).unwrap();
    assert_eq!(pods["items"].as_array().map_or(0, Vec::len) as u64, replicas);
    rack.api().delete(&format!("{DEPLOYMENTS}/sized")).unwrap();
    for name in &made {
        let _ = rack.api().delete(&format!("{PODS}/{name}?gracePeriodSeconds=0"));
    }
    let is_empty = || Ok((rack.api().get(PODS)?["items"] == json!([])).then_some(()));
    eventually(PATIENCE, "the pods to be gone", is_empty).unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
    settles(&rack);
}

/// Waits until what runs on the host is what the API says, neither less nor more.
#[track_caller]
fn settles(rack: &Rack) {
    let differences = || -> Result<Vec<String>> {
        let pods = rack.api().get(PODS)?["items"].as_array().cloned().unwrap_or_default();
        let (mut wrong, groups) = (Vec::new(), cgroups(rack));
        let uids: BTreeSet<String> =
            pods.iter().filter_map(|pod| Some(pod["metadata"]["uid"].as_str()?.to_owned())).collect();
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let processes = processes_in(&groups, pod["metadata"]["uid"].as_str().unwrap_or_default());
            if !is_ready(pod) || !pod["metadata"]["deletionTimestamp"].is_null() || processes.len() != 1 {
                wrong.push(format!("{name} has processes {processes:?}: {}", pod["status"]));
            }
        }
        for (what, found) in inventory(rack)? {
            let more: Vec<_> = found.difference(&uids).collect();
            // Not every pod has a mount that the host sees.
            let less: Vec<_> = uids.difference(&found).filter(|_| what != "mounts").collect();
            if !more.is_empty() || !less.is_empty() {
                wrong.push(format!("{what}: left over {more:?}, missing {less:?}"));
            }
        }
        if links(rack)?.len() != pods.len() {
            wrong.push(format!("{} links for {} pods: {:?}", links(rack)?.len(), pods.len(), links(rack)?));
        }
        Ok(wrong)
    };
    let settled = eventually(PATIENCE, "the host to be as the API says", || {
        let wrong = differences()?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(wrong.is_empty().then_some(()))
    });
    settled.unwrap_or_else(|error| panic!("{error:#}: {:#?}\n{}", differences(), log(rack)));
}

#[test]
fn the_next_lab_removes_what_a_killed_owner_left() {
    if let Ok(name) = std::env::var(OWNER) {
        let mut rack = Rack::prepare(&name, Path::new(CORACLE), false).unwrap();
        rack.start().and_then(|_| rack.apply()).unwrap();
        println!("the rack runs");
        std::thread::sleep(Duration::MAX);
    }
    let name = format!("o{:05}", std::process::id() % 100_000);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "survival::the_next_lab_removes_what_a_killed_owner_left", "--nocapture"])
        .env(OWNER, &name);
    let mut owner = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(owner.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("the rack runs")), "the owner ended");
    owner.kill().unwrap();
    owner.wait().unwrap();

    let slice = PathBuf::from(format!("coracle-{name}-0.slice"));
    let groups = cgroups_below(&slice);
    let processes = processes_in(&groups, "");
    // The edge, two shims and two containers at least.
    assert!(processes.len() >= 5, "{processes:?}");
    let lab = Lab::new(&name).unwrap();
    assert_eq!(cgroups_below(&slice), Vec::<PathBuf>::new());
    let alive: Vec<String> =
        processes.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok()).collect();
    // Who reaps what lost its parents is not ours to say.
    assert!(alive.iter().all(|stat| stat.contains(") Z ")), "{alive:?}");
    assert!(!Path::new(&format!("/run/netns/cor-{name}-0")).exists());
    assert!(!lab.dir().join("cupboard").exists());
}

#[test]
fn stop_all_leaves_nothing() {
    let mut rack = rack();
    let slice = rack.lab.host(0).cgroup_root.clone();
    assert!(!links(&rack).unwrap().is_empty());
    assert!(processes_in(&cgroups(&rack), "").len() >= 5);
    let began = Instant::now();
    rack.lab
        .host(0)
        .run(&[CORACLE, "stop", "--all", "--cgroup-root", &slice])
        .unwrap_or_else(|error| panic!("{error:#}"));
    println!("stop --all took {:?}", began.elapsed());
    assert_eq!(links(&rack).unwrap(), Vec::<String>::new());
    assert_eq!(processes_of_host(&rack), Vec::<String>::new());
    assert_eq!(cgroups(&rack), Vec::<PathBuf>::new());
    let rules = rack.lab.host(0).run(&["nft", "list", "tables"]).unwrap();
    assert!(!rules.contains("coracle"), "{rules}");
    let routes = rack.lab.host(0).run(&["sh", "-c", "ip route; ip -6 route"]).unwrap();
    assert!(!routes.contains("cor"), "{routes}");
    for (what, found) in inventory(&rack).unwrap() {
        // Volumes and logs are the pods' own: they run again after the next start.
        if !["volumes", "logs"].contains(&what) {
            assert_eq!(found, BTreeSet::new(), "{what}");
        }
    }
    // And from nothing to everything again.
    rack.start().and_then(|_| rack.check_sites()).unwrap_or_else(|error| panic!("{error:#}\n{}", log(&rack)));
}

/// The command lines of what runs on the host, but for what holds its namespaces open.
fn processes_of_host(rack: &Rack) -> Vec<String> {
    let namespace = rack.lab.host(0).run(&["readlink", "/proc/self/ns/mnt"]).unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let of_host =
        pids.filter(|pid| fs::read_link(pid.join("ns/mnt")).is_ok_and(|ns| ns.to_string_lossy() == namespace.trim()));
    let commands = of_host.map(|pid| fs::read_to_string(pid.join("cmdline")).unwrap_or_default().replace('\0', " "));
    commands.filter(|command| !command.is_empty() && !command.starts_with("sleep infinity")).collect()
}
