//! `/containerLogs`: a container's log as it is, or as it grows.
//!
//! Source: kubelet_pods.go, `GetKubeletContainerLogs` and `validateContainerLogStatus`.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::sync::mpsc;

use super::{Body, Endpoint, text, values};
use crate::logs::{Options, Reader, Stream, Watcher};
use crate::plan::log_path;
use crate::shared::{Known, Registry};

/// Pieces that wait for a slow client: enough to keep the connection busy, little enough to forget.
const PIECES: usize = 4;

pub(super) fn serve(endpoint: &Endpoint, known: &Known, container: &str, query: &str) -> Response<Body> {
    let options = match options(query, Timestamp::now()) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error),
    };
    let pod = known.pod.metadata.name.clone().unwrap_or_default();
    let previous = values(query, "previous").iter().any(|value| is_true(value));
    let (attempt, running) = match which_run(&known.status, &pod, container, previous) {
        Ok(found) => found,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error),
    };
    let path = endpoint.roots.logs(&known.pod).join(log_path(container, attempt));
    let follow = options.follow && running;
    // Watched before it is read: nothing can be written in between unseen.
    let watcher = match follow.then(|| Watcher::new(&path)).transpose() {
        Ok(watcher) => watcher,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the log cannot be followed: {error}")),
    };
    let reader = match Reader::open(&path, &Options { follow, ..options }) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return text(StatusCode::OK, ""),
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let run = Run {
        registry: endpoint.registry.clone(),
        namespace: known.pod.metadata.namespace.clone().unwrap_or_default(),
        pod,
        uid: known.pod.metadata.uid.clone(),
        container: container.to_owned(),
        attempt,
        path,
    };
    endpoint.tasks.spawn(copy(reader, watcher, run, sender, endpoint.cancel.clone()));
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(pieces.map(|piece| piece.map(Frame::data)))))
}

/// The run of a container whose log is followed.
struct Run {
    registry: Registry,
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
    attempt: i32,
    path: PathBuf,
}

impl Run {
    /// Whether more may be written.
    fn goes_on(&self) -> bool {
        let Some(known) = self.registry.named(&self.namespace, &self.pod) else { return false };
        known.pod.metadata.uid == self.uid
            && status_of(&known.status, &self.container).is_some_and(|status| {
                status.restart_count == self.attempt
                    && status.state.as_ref().is_some_and(|state| state.running.is_some())
            })
    }
}

async fn copy(
    mut reader: Reader,
    watcher: Option<Watcher>,
    run: Run,
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    cancel: tokio_util::sync::CancellationToken,
) {
    let mut pods = run.registry.changes();
    loop {
        pods.mark_unchanged();
        // Taken before reading: what was written before the end is read after it.
        let goes_on = run.goes_on();
        let (back, piece) = match tokio::task::spawn_blocking(move || {
            let piece = reader.read();
            (reader, piece)
        })
        .await
        {
            Ok(read) => read,
            Err(_) => return,
        };
        reader = back;
        match piece {
            Ok(piece) if piece.is_empty() => {}
            piece => {
                let failed = piece.is_err();
                if sender.send(piece.map(Bytes::from)).await.is_err() || failed {
                    return;
                }
                continue;
            }
        }
        let Some(watcher) = &watcher else { return };
        if !goes_on || reader.is_full() {
            return;
        }
        tokio::select! {
            changed = watcher.changed() => if let Err(error) = changed {
                tracing::warn!(path = %run.path.display(), %error, "log not followed any more");
                return;
            },
            // The container may have ended.
            Ok(()) = pods.changed() => {}
            () = sender.closed() => return,
            () = cancel.cancelled() => return,
        }
    }
}

fn is_true(text: &str) -> bool {
    matches!(text, "" | "1" | "true" | "True" | "TRUE" | "t" | "T")
}

fn options(query: &str, now: Timestamp) -> Result<Options, String> {
    let one = |name: &str| values(query, name).into_iter().next().filter(|value| !value.is_empty());
    let number = |name: &str| -> Result<Option<u64>, String> {
        one(name).map(|text| text.parse().map_err(|_| format!("{name}: {text:?} is no whole number"))).transpose()
    };
    let flag = |name: &str| values(query, name).iter().any(|value| is_true(value));
    let since = match (one("sinceTime"), number("sinceSeconds")?) {
        (Some(text), _) => {
            Some(text.parse().map_err(|_| format!("sinceTime: {text:?} is not in the form of RFC 3339"))?)
        }
        (None, Some(seconds)) => {
            let age = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Some(now.checked_sub(age).unwrap_or(Timestamp::MIN))
        }
        (None, None) => None,
    };
    Ok(Options {
        follow: flag("follow"),
        tail_lines: number("tailLines")?,
        since,
        timestamps: flag("timestamps"),
        limit_bytes: number("limitBytes")?,
        stream: match one("stream").as_deref() {
            None | Some("All") => None,
            Some("Stdout") => Some(Stream::Stdout),
            Some("Stderr") => Some(Stream::Stderr),
            Some(other) => return Err(format!("invalid stream type {other:?}")),
        },
    })
}

fn status_of<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    crate::pod_machine::all_statuses(status).find(|status| status.name == container)
}

/// The run whose log is meant, and whether it still runs; or upstream's words for why there is none.
fn which_run(status: &PodStatus, pod: &str, container: &str, previous: bool) -> Result<(i32, bool), String> {
    let Some(status) = status_of(status, container) else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let state = status.state.clone().unwrap_or_default();
    let created = |end: &Option<k8s_openapi::api::core::v1::ContainerStateTerminated>| {
        end.as_ref().is_some_and(|end| end.container_id.as_deref().is_some_and(|id| !id.is_empty()))
    };
    let last = status.last_state.clone().unwrap_or_default().terminated;
    let newest = status.restart_count;
    // While a container waits to be started again its newest run is the one that ended last.
    let before = if state.waiting.is_some() { newest } else { newest - 1 };
    if previous {
        return match created(&last) {
            true => Ok((before.max(0), false)),
            false => Err(format!("previous terminated container {container:?} in pod {pod:?} not found")),
        };
    }
    if state.running.is_some() {
        return Ok((newest, true));
    }
    if created(&state.terminated) {
        return Ok((newest, false));
    }
    if created(&last) {
        return Ok((before.max(0), false));
    }
    if state.terminated.is_some() || last.is_some() {
        return Err(format!("container {container:?} in pod {pod:?} is terminated"));
    }
    let why = match state.waiting.and_then(|waiting| waiting.reason).as_deref() {
        Some("ErrImagePull") => "image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
        Some(reason) => reason.to_owned(),
        None => "no logs yet".to_owned(),
    };
    Err(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(container: Value, previous: bool, expected: Result<(i32, bool), &str>) {
        let mut container = container;
        for (key, value) in
            [("name", json!("c")), ("image", json!("")), ("imageID", json!("")), ("ready", json!(false))]
        {
            container[key] = value;
        }
        let status = serde_json::from_value(json!({"containerStatuses": [container]})).unwrap();
        let found = which_run(&status, "p", "c", previous);
        assert_eq!(found.as_ref().map(|found| *found).map_err(String::as_str), expected);
    }

    #[test]
    fn the_run_is_the_newest_that_has_a_log() {
        let ended = json!({"terminated": {"exitCode": 1, "containerID": "coracle://a"}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        check(json!({"restartCount": 2, "state": {"running": {}}, "lastState": ended}), false, Ok((2, true)));
        check(json!({"restartCount": 2, "state": {"running": {}}, "lastState": ended}), true, Ok((1, false)));
        check(
            json!({"restartCount": 2, "state": waiting("CrashLoopBackOff"), "lastState": ended}),
            false,
            Ok((2, false)),
        );
        check(
            json!({"restartCount": 2, "state": waiting("CrashLoopBackOff"), "lastState": ended}),
            true,
            Ok((2, false)),
        );
        check(json!({"restartCount": 0, "state": ended}), false, Ok((0, false)));
        check(
            json!({"restartCount": 0, "state": ended}),
            true,
            Err("previous terminated container \"c\" in pod \"p\" not found"),
        );
        check(
            json!({"restartCount": 0, "state": waiting("ErrImagePull")}),
            false,
            Err("container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
        );
        check(
            json!({"restartCount": 0, "state": waiting("ContainerCreating")}),
            false,
            Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
        );
    }

    #[test]
    fn options_come_from_the_query() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let found = options("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&stream=Stderr", now).unwrap();
        let since = "2026-11-23T09:59:00Z".parse().ok();
        let expected = Options {
            follow: true,
            tail_lines: Some(5),
            since,
            timestamps: true,
            limit_bytes: None,
            stream: Some(Stream::Stderr),
        };
        assert_eq!(found, expected);
        assert_eq!(options("tailLines=x", now), Err("tailLines: \"x\" is no whole number".to_owned()));
    }
}
