//! Equality before speed: both sides give the same answers, over the same TLS, judge each request, and sync before they answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixtures::{NAMESPACE, config_map, pod};
use crate::load::{Agreed, Ask, Client};
use crate::side::Cluster;

/// Creates of which each must be synced before its answer.
const SYNCED: usize = 20;
/// Paths that a difference is shown with; more are counted.
const SHOWN: usize = 8;
/// The name of the objects that are compared.
const NAME: &str = "equal";

/// What one side was seen to do.
#[derive(Clone, Debug)]
pub struct Seen {
    tls: Agreed,
    /// The answers to people who may not: status, by who they are.
    refused: BTreeMap<&'static str, u16>,
    /// Canonical answers, by what was asked.
    answers: BTreeMap<&'static str, Value>,
    /// Calls of fsync and fdatasync during [`SYNCED`] creates, one after the other.
    syncs: usize,
}

/// How requests of people to whom nothing was given are answered.
///
/// # Errors
/// When the side does not answer.
pub fn refused(cluster: &Cluster) -> Result<BTreeMap<&'static str, u16>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let create = |client: Client| Ok(client.ask(Ask::post(&path, config_map("refused")))?.0);
    let anonymous: Result<u16> = create(cluster.anonymous()?);
    Ok(BTreeMap::from([("a stranger", create(cluster.stranger()?)?), ("somebody anonymous", anonymous?)]))
}

/// Asks one side everything that is timed later, once.
///
/// # Errors
/// When a request fails, or strace cannot be run.
pub fn observe(cluster: &Cluster, client: &Client, refused: BTreeMap<&'static str, u16>) -> Result<Seen> {
    let of = |resource: &str| format!("/api/v1/namespaces/{NAMESPACE}/{resource}");
    let (config_maps, pods) = (of("configmaps"), of("pods"));
    let before = client.must(Ask::get(&config_maps))?;
    let revision = before["metadata"]["resourceVersion"].as_str().context("a list has a resourceVersion")?;
    let mut answers = BTreeMap::new();
    answers.insert("create a ConfigMap", client.must(Ask::post(&config_maps, config_map(NAME)))?);
    answers.insert("get a ConfigMap", client.must(Ask::get(format!("{config_maps}/{NAME}")))?);
    answers.insert("create a Pod", client.must(Ask::post(&pods, pod(NAME)))?);
    answers.insert("list Pods", client.must(Ask::get(&pods))?);
    let watch = format!(
        "{config_maps}?watch=1&timeoutSeconds=1&resourceVersion={revision}&fieldSelector=metadata.name%3D{NAME}"
    );
    let (status, events) = client.text(Ask::get(watch))?;
    ensure!(status == 200, "a watch is answered with {status}: {events}");
    let first = events.lines().next().context("a watch tells nothing")?;
    answers.insert("watch ConfigMaps", serde_json::from_str(first)?);
    answers.values_mut().for_each(canonical);
    let syncs = syncs_of(cluster, || {
        let path = config_maps.clone();
        let ask = move |n| Ask::post(path.clone(), config_map(&format!("synced-{n}")));
        client.load(1, SYNCED, ask).map(drop)
    })?;
    Ok(Seen { tls: client.agreed()?, refused, answers, syncs })
}

/// What differs between the sides, or is not right on one of them. Empty: their speeds may be compared.
pub fn differences(ours: &Seen, theirs: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    if ours.tls != theirs.tls {
        found.push(format!("TLS: {:?} and {:?}", ours.tls, theirs.tls));
    }
    for (name, seen) in [("coracle", ours), ("the peer", theirs)] {
        // 401: nobody is anonymous there; 403: they may be, but may do nothing.
        for (who, status) in seen.refused.iter().filter(|(_, status)| ![401, 403].contains(*status)) {
            found.push(format!("authorization: {name} answers {who} with {status}"));
        }
        if seen.syncs < SYNCED {
            found.push(format!("durability: {name} synced {} times for {SYNCED} creates", seen.syncs));
        }
    }
    for (what, ours) in &ours.answers {
        let mut paths = Vec::new();
        compare("", ours, theirs.answers.get(what).unwrap_or(&Value::Null), &mut paths);
        if !paths.is_empty() {
            let more = paths.len().saturating_sub(SHOWN);
            paths.truncate(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            found.push(format!("{what}: {}{more}", paths.join("; ")));
        }
    }
    found
}

/// Takes away what differs between any two clusters: identities, revisions and times.
fn canonical(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::Object(meta)) = members.get_mut("metadata") {
                for name in ["uid", "resourceVersion", "creationTimestamp"] {
                    meta.remove(name);
                }
                for entry in meta.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(entry) = entry.as_object_mut() {
                        entry.remove("time");
                    }
                }
            }
            members.values_mut().for_each(canonical);
        }
        Value::Array(items) => items.iter_mut().for_each(canonical),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Collects where two documents differ, as JSON pointers with both values.
fn compare(at: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let of = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or(Value::Null);
                compare(&format!("{at}/{key}"), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{at}/{n}"), a, b, found);
            }
        }
        _ if ours == theirs => {}
        _ => found.push(format!("{at} is {} with coracle, {} with the peer", short(ours), short(theirs))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{} …", text.chars().take(60).collect::<String>()) } else { text }
}

/// How often the side's processes call fsync or fdatasync during `work`.
fn syncs_of(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let file = std::env::temp_dir().join(format!("bench-syncs-{}", std::process::id()));
    let removed = Removed(file);
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=fsync,fdatasync", "-o"]).arg(&removed.0);
    let pids = cluster.account.pids();
    for pid in &pids {
        command.arg("-p").arg(pid.to_string());
    }
    let mut strace = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not run strace: apt-get install strace")?;
    let mut lines = BufReader::new(strace.stderr.take().context("stderr was piped")?).lines();
    let mut attached = 0;
    while attached < pids.len() {
        let line = lines.next().context("strace ended before it was attached")??;
        ensure!(!line.contains("Operation not permitted"), "strace may not attach: {line}");
        // A process that has ended in the meantime is told of too.
        attached += usize::from(line.contains("attach"));
    }
    // It goes on to tell of threads, and must not wait for a reader.
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    let worked = work();
    let pid = Pid::from_raw(strace.id().try_into()?).context("a process id is not zero")?;
    kill_process(pid, Signal::INT)?;
    strace.wait()?;
    reader.join().map_err(|_| anyhow::anyhow!("the reader of strace panicked"))?;
    worked?;
    let text = std::fs::read_to_string(&removed.0).context("strace left no file")?;
    Ok(text.lines().filter(|line| line.contains("fsync(") || line.contains("fdatasync(")).count())
}

/// A file that is gone when the value is.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // strace may not have made it.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(spec: Value) -> Seen {
        let mut answer = json!({
            "metadata": {"uid": spec.to_string(), "name": "a", "managedFields": [{"manager": "bench", "time": spec}]},
            "spec": spec,
        });
        canonical(&mut answer);
        Seen {
            tls: Agreed { protocol: "TLSv1_3".into(), cipher: "A".into(), p256: true },
            refused: BTreeMap::from([("a stranger", 403)]),
            answers: BTreeMap::from([("get", answer)]),
            syncs: SYNCED,
        }
    }

    #[test]
    fn identities_and_times_may_differ_and_nothing_else() {
        assert_eq!(differences(&seen(json!(1)), &seen(json!(1))), Vec::<String>::new());
        assert_eq!(
            differences(&seen(json!({"a": 1, "b": [1]})), &seen(json!({"a": 1, "b": [2], "c": true}))),
            ["get: /spec/b/0 is 1 with coracle, 2 with the peer; /spec/c is null with coracle, true with the peer"]
        );
    }

    #[test]
    fn a_side_that_does_not_sync_or_lets_everybody_in_is_told() {
        let fast = Seen { syncs: 3, refused: BTreeMap::from([("a stranger", 201)]), ..seen(json!(1)) };
        assert_eq!(
            differences(&fast, &seen(json!(1))),
            ["authorization: coracle answers a stranger with 201", "durability: coracle synced 3 times for 20 creates"]
        );
    }

    #[test]
    fn other_ciphers_are_told() {
        let other = Seen { tls: Agreed { cipher: "B".into(), ..seen(json!(1)).tls }, ..seen(json!(1)) };
        assert_eq!(differences(&seen(json!(1)), &other).len(), 1);
    }
}
