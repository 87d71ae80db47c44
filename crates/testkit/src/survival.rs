//! What is killed on a rack, how long it takes to be back, and what must not have noticed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{checked, eventually};
use crate::rack::{Rack, WEBSITE};

/// The pods of the example.
pub const PODS: &str = "/api/v1/namespaces/rack/pods";
/// How long a request may wait for the next edge.
const NEXT_EDGE: Duration = Duration::from_secs(30);

/// One run of a container: another one has another of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub restarts: u64,
    pub started_at: String,
    /// Since when the pod is Ready.
    pub ready_since: String,
}

impl Rack {
    /// The running containers of the example's namespace by `POD/CONTAINER`.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn runs(&self) -> Result<BTreeMap<String, Run>> {
        let pods = self.api().get(PODS)?;
        Ok(pods["items"].as_array().into_iter().flatten().flat_map(runs).collect())
    }

    /// The pods of an app: name, uid.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod_of(&self, app: &str) -> Result<(String, String)> {
        let pods = self.api().get(&format!("{PODS}?labelSelector=app%3D{app}"))?;
        let meta = &pods["items"][0]["metadata"];
        let text = |field: &str| meta[field].as_str().map(str::to_owned).with_context(|| format!("no pod of {app}"));
        Ok((text("name")?, text("uid")?))
    }

    /// The shim of a pod.
    ///
    /// # Errors
    /// When there is none.
    pub fn shim_of(&self, uid: &str) -> Result<u32> {
        let is_its = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(uid)
        };
        self.shims()?.into_iter().find(is_its).with_context(|| format!("no shim of pod {uid}"))
    }

    /// Kills the edge with -9 and returns when it is dead.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_edge(&self) -> Result<()> {
        kill_process(self.pid("edge")?)
    }

    /// Kills the edge with -9: how long until the first request that began after its death is answered by the next.
    ///
    /// # Errors
    /// When a connection is refused, or the answer is not the website's.
    pub fn replace_edge(&self) -> Result<Duration> {
        let began = Instant::now();
        self.kill_edge()?;
        let answer = self.web().with_patience(NEXT_EDGE).get(self.ingress(443), WEBSITE, "/")?;
        ensure!(answer.status == 200, "the next edge answers with {answer:?}");
        Ok(began.elapsed())
    }

    /// Kills the shim of an app's pod with -9: how long until a new run of the same pod is Ready.
    ///
    /// # Errors
    /// When it does not become Ready, or another container than the pod's has restarted.
    pub fn replace_shim(&self, app: &str) -> Result<Duration> {
        let (name, uid) = self.pod_of(app)?;
        let before = self.runs()?;
        let began = Instant::now();
        kill_process(self.shim_of(&uid)?)?;
        let path = format!("{PODS}?fieldSelector=metadata.name%3D{name}");
        self.api().watch_until(&path, |pod| {
            let now = runs(pod);
            is_ready(pod)
                && !now.is_empty()
                && now.iter().all(|(key, run)| before.get(key).is_none_or(|was| was.id != run.id))
        })?;
        let took = began.elapsed();
        let of_others = |mut all: BTreeMap<String, Run>| {
            all.retain(|key, _| !key.starts_with(&format!("{name}/")));
            all
        };
        let (before, after) = (of_others(before), of_others(self.runs()?));
        ensure!(before == after, "other pods noticed: {before:#?} are now {after:#?}");
        Ok(took)
    }
}

/// Whether a pod's condition Ready is True.
pub fn is_ready(pod: &Value) -> bool {
    ready(pod).is_some_and(|ready| ready["status"] == "True")
}

fn ready(pod: &Value) -> Option<&Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

/// The running containers of a pod.
fn runs(pod: &Value) -> Vec<(String, Run)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let statuses = pod["status"]["containerStatuses"].as_array();
    let running = statuses.into_iter().flatten().filter_map(|status| {
        let started_at = status["state"]["running"]["startedAt"].as_str()?.to_owned();
        let key = format!("{}/{}", text(&pod["metadata"]["name"]), text(&status["name"]));
        let restarts = status["restartCount"].as_u64().unwrap_or_default();
        let ready_since = ready(pod).map(|ready| text(&ready["lastTransitionTime"])).unwrap_or_default();
        Some((key, Run { id: text(&status["containerID"]), restarts, started_at, ready_since }))
    });
    running.collect()
}

/// Kills with -9 and waits until the process has closed all that it had open.
///
/// # Errors
/// When it does not run, or does not end.
pub fn kill_process(pid: u32) -> Result<()> {
    checked(Command::new("kill").args(["-9", &pid.to_string()]))?;
    let is_alive = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        // The last thread closes everything; a zombie before it may be the first.
        !matches!(state, None | Some('Z' | 'X'))
    };
    eventually(Duration::from_secs(10), "a killed process to end", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        Ok((!threads.into_iter().flatten().flatten().any(is_alive)).then_some(()))
    })
}
