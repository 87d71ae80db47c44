//! A pod's volumes, from the worker's side: gathered, set up apart from everything else, and kept up to date.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::store::Image;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::{info, warn};

use super::{Message, Worker};
use crate::events::PodEvents;
use crate::eviction;
use crate::images::{self, Missing};
use crate::pod_machine::event::Event;
use crate::shared::{Roots, Shared};
use crate::sources::PodSources;
use crate::tokens::Tokens;
use crate::volumes::payload::Token;
use crate::volumes::{self, Failure, Ready, Request, Snapshot, host_path};

/// How long a pod waits for its disks in one attempt. Source: volumemanager, `podAttachAndMountTimeout` is 2 min 3 s.
const TIMEOUT: Duration = Duration::from_secs(123);

/// What is under way on the pod's volumes.
#[derive(Default)]
pub(super) struct Storage {
    /// A thread works on the pod's directory, maybe one that a dead disk holds: no second one is started.
    busy: Arc<AtomicBool>,
    refreshing: bool,
    again: bool,
}

impl Storage {
    /// A refresh ended; whether another was asked for meanwhile.
    pub(super) fn refreshed(&mut self) -> bool {
        self.refreshing = false;
        std::mem::take(&mut self.again)
    }
}

/// A request whose parts are owned, for the thread that works on it.
struct Gathered {
    pod: Arc<Pod>,
    dir: PathBuf,
    sources: Snapshot,
    facts: crate::plan::env::Facts,
    tokens: BTreeMap<String, Vec<Token>>,
    declared: Vec<PathBuf>,
    stamp: String,
}

impl Gathered {
    fn request(&self) -> Request<'_> {
        Request {
            pod: &self.pod,
            dir: &self.dir,
            sources: &self.sources,
            facts: &self.facts,
            tokens: &self.tokens,
            declared: &self.declared,
            stamp: &self.stamp,
        }
    }
}

impl Worker {
    pub(super) fn mount(&mut self) {
        let (events, busy, gather) = (self.events.clone(), self.storage.busy.clone(), self.gather());
        self.answer(async move {
            let outcome = async {
                let (gathered, tokens) = gather.await?;
                let ready = apart(&busy, move || volumes::set_up(&gathered.request())).await?;
                Ok::<_, Vec<Failure>>((ready, tokens))
            };
            match outcome.await {
                Ok((ready, tokens)) => Message::Mounted(ready, tokens),
                Err(failures) => {
                    for failure in failures {
                        events.warning("FailedMount", &failure.event(), None);
                    }
                    Message::Machine(Event::VolumesFailed)
                }
            }
        });
    }

    /// Brings payloads up to date, once the volumes are there. One at a time; what changes meanwhile is done afterwards.
    pub(super) fn refresh(&mut self) {
        let pod = self.machine.pod();
        if self.volumes.is_empty() || !volumes::has_payloads(pod) || self.machine.is_stopping() {
            return;
        }
        if self.storage.refreshing {
            self.storage.again = true;
            return;
        }
        self.storage.refreshing = true;
        let (events, busy, gather, before) =
            (self.events.clone(), self.storage.busy.clone(), self.gather(), self.tokens.clone());
        self.answer(async move {
            let outcome = async {
                let (gathered, tokens) = gather.await?;
                apart(&busy, move || volumes::refresh(&gathered.request())).await?;
                Ok::<_, Vec<Failure>>(tokens)
            };
            Message::Refreshed(outcome.await.unwrap_or_else(|failures| {
                for failure in failures {
                    events.warning("FailedMount", &failure.event(), None);
                }
                before
            }))
        });
    }

    /// Measures what the pod uses of the disk, apart from everything else.
    pub(super) fn measure(&mut self) {
        let pod = self.machine.pod().clone();
        let spec = pod.spec.clone().unwrap_or_default();
        let dir = self.shared.roots.pod(&self.uid);
        let root =
            |name: &String| Some((name.clone(), dir.join("overlay").join(self.machine.run_of(name)?).join("upper")));
        let roots = eviction::measured(&spec).filter_map(|container| root(&container.name)).collect();
        let places = eviction::Places { logs: self.shared.roots.logs(&pod), roots, dir };
        self.answer(async move {
            let measured = tokio::task::spawn_blocking(move || eviction::measure(&pod, &places)).await;
            // A walk that failed is done again when the next is due.
            Message::Measured(measured.unwrap_or_default())
        });
    }

    pub(super) fn unmount(&mut self) {
        let (dir, busy, uid) = (self.shared.roots.pod(&self.uid), self.storage.busy.clone(), self.uid.clone());
        self.volumes = Arc::default();
        self.tokens = Tokens::default();
        self.answer(async move {
            loop {
                let dir = dir.clone();
                let place = || Failure { volume: "pod".to_owned(), message: String::new() };
                let removed = apart(&busy, move || {
                    volumes::tear_down(&dir).map_err(|error| vec![Failure { message: error.to_string(), ..place() }])
                });
                match removed.await {
                    Ok(()) => return Message::Machine(Event::VolumesGone),
                    Err(failures) => warn!(pod = uid, ?failures, "volumes not removed, will try again"),
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    /// Asks for everything that the volumes are made of.
    fn gather(&self) -> impl Future<Output = Result<(Gathered, Tokens), Vec<Failure>>> + Send + 'static {
        let (shared, sources, pod, uid) =
            (self.shared.clone(), self.sources.clone(), self.machine.pod().clone(), self.uid.clone());
        gather(shared, sources, pod, uid, self.facts(), self.tokens.clone())
    }
}

async fn gather(
    shared: Arc<Shared>,
    sources: PodSources,
    pod: Arc<Pod>,
    uid: String,
    facts: crate::plan::env::Facts,
    mut tokens: Tokens,
) -> Result<(Gathered, Tokens), Vec<Failure>> {
    let failed = |message: String| vec![Failure { volume: payload_volume(&pod), message }];
    let snapshot = sources.snapshot().await.map_err(failed)?;
    let now = shared.now();
    let issued = tokens.of_pod(&shared.client, &pod, now).await.map_err(failed)?;
    let gathered = Gathered {
        dir: shared.roots.pod(&uid),
        sources: snapshot,
        facts,
        tokens: issued,
        declared: declared(&shared.roots, &pod),
        stamp: stamp(now),
        pod,
    };
    Ok((gathered, tokens))
}

/// The images, by name, of the volumes that a container mounts and nothing has mounted yet; else the last that is not to be had.
///
/// Source: kuberuntime_manager.go, `getImageVolumes` and `toKubeContainerImageVolumes`.
pub(super) async fn volume_images(
    shared: &Shared,
    pod: &Pod,
    events: &PodEvents,
    container: &Container,
) -> Result<BTreeMap<String, Arc<Image>>, (String, Missing)> {
    let dir = shared.roots.pod(pod.metadata.uid.as_deref().unwrap_or_default());
    let (mut found, mut missing) = (BTreeMap::new(), None);
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(source) = &volume.image else { continue };
        let wanted = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
        // What cannot be read now fails when it is mounted, with its reason.
        let mounted = volumes::mounts::mounted().unwrap_or_default();
        if !wanted || mounted.contains(&volumes::image_place(&dir, &volume.name)) {
            continue;
        }
        let of_volume = images::of_volume(source);
        match images::ensure(&shared.images, &shared.client, events, pod, &of_volume).await {
            Ok(image) => drop(found.insert(volume.name.clone(), image)),
            Err(why) => missing = Some((source.reference.clone().unwrap_or_default(), why)),
        }
    }
    missing.map_or(Ok(found), Err)
}

/// The first volume that comes from the API, for messages about the API.
fn payload_volume(pod: &Pod) -> String {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let from_api =
        volumes.find(|volume| volume.projected.is_some() || volume.secret.is_some() || volume.config_map.is_some());
    from_api.map_or_else(|| "pod".to_owned(), |volume| volume.name.clone())
}

/// As upstream names them: a date and something that differs.
fn stamp(now: Timestamp) -> String {
    format!("{}.{}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond())
}

/// Mount points that were declared; read each time, as administrators edit them. Local files only.
fn declared(roots: &Roots, pod: &Pod) -> Vec<PathBuf> {
    let has_host_paths =
        pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.host_path.is_some());
    if !has_host_paths {
        return Vec::new();
    }
    let fstab = std::fs::read_to_string(&roots.fstab).unwrap_or_default();
    let units = std::fs::read_dir(&roots.units).into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        path.extension().is_some_and(|kind| kind == "mount").then(|| std::fs::read_to_string(path).ok())?
    });
    host_path::declared(&fstab, &units.collect::<Vec<_>>())
}

/// Runs blocking work on a thread of its own. When it does not return in time it is left behind, and nothing else is started
/// on this pod's volumes until it does.
async fn apart<T: Send + 'static>(
    busy: &Arc<AtomicBool>,
    work: impl FnOnce() -> Result<T, Vec<Failure>> + Send + 'static,
) -> Result<T, Vec<Failure>> {
    let stuck = |what: &str| vec![Failure { volume: "pod".to_owned(), message: what.to_owned() }];
    if busy.swap(true, Ordering::AcqRel) {
        return Err(stuck("an earlier attempt still waits for a disk or file server that does not answer"));
    }
    let done = busy.clone();
    let task = tokio::task::spawn_blocking(move || {
        let result = work();
        done.store(false, Ordering::Release);
        result
    });
    match tokio::time::timeout(TIMEOUT, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => {
            busy.store(false, Ordering::Release);
            Err(stuck(&format!("the attempt failed: {error}")))
        }
        Err(_) => Err(stuck("timed out waiting for a disk or file server that does not answer")),
    }
}

/// Deletes the logs of a pod that is gone, and the links to them.
pub(super) async fn forget(roots: &Roots, logs: PathBuf) {
    let links = roots.container_logs.clone();
    let removed = tokio::task::spawn_blocking(move || {
        for entry in std::fs::read_dir(&links).into_iter().flatten().flatten() {
            let target = std::fs::read_link(entry.path());
            if target.is_ok_and(|target| target.starts_with(&logs)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => info!(%error, "logs not deleted"),
        Err(error) => info!(%error, "logs not deleted"),
    }
}

/// As [`forget`], for a pod of which only the uid is known.
pub(super) async fn forget_uid(roots: &Roots, uid: &str) {
    let suffix = format!("_{uid}");
    let all = std::fs::read_dir(&roots.pod_logs).into_iter().flatten().flatten().map(|entry| entry.path());
    for logs in all.filter(|path| path.to_string_lossy().ends_with(&suffix)) {
        forget(roots, logs).await;
    }
}

/// Removes a pod's directory that no worker cares for.
pub(super) async fn remove_patiently(dir: &std::path::Path, uid: &str) {
    let busy = Arc::new(AtomicBool::new(false));
    loop {
        let dir = dir.to_owned();
        let failure = |error: std::io::Error| vec![Failure { volume: "pod".to_owned(), message: error.to_string() }];
        match apart(&busy, move || volumes::tear_down(&dir).map_err(failure)).await {
            Ok(()) => return,
            Err(failures) => warn!(pod = uid, ?failures, "volumes not removed, will try again"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// What a container's start takes from the volumes.
pub(super) type Volumes = Arc<BTreeMap<String, Ready>>;
