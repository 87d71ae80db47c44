//! A pod's volumes on disk: made before its containers, kept up to date while they run, removed after them.
//!
//! The layout below the node's root is the kubelet's: `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`. Everything in here
//! blocks, some of it on disks and file servers that may not answer: callers run it apart from everything else, one at a time
//! for each pod. Sources: pkg/kubelet/volumemanager, pkg/volume/{emptydir,hostpath,secret,configmap,projected,downwardapi}.

pub mod atomic;
pub mod host_path;
pub mod mounts;
pub mod payload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume, VolumeMount};

use self::payload::{Payload, Token};
use crate::plan::env::{Facts, Lookup, expand};
use crate::plan::{Bind, Propagation};
use crate::resources;

/// Marks a pod's directory as ours: those of another kubelet are left alone.
const MARKER: &str = ".coracle";

/// What setting up a pod's volumes takes; gathered before, so that nothing here asks the network.
pub struct Request<'a> {
    pub pod: &'a Pod,
    /// `pods/<uid>` below the node's root.
    pub dir: &'a Path,
    pub sources: &'a dyn Lookup,
    pub facts: &'a Facts,
    /// The tokens of each projected volume, in the order of its sources.
    pub tokens: &'a BTreeMap<String, Vec<Token>>,
    /// Mount points that the administrator declared.
    pub declared: &'a [PathBuf],
    /// Names new directories of files: unique within the pod.
    pub stamp: &'a str,
}

/// A volume that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub path: PathBuf,
    /// Whatever the mount says.
    pub read_only: bool,
}

/// One volume that could not be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub volume: String,
    pub message: String,
}

impl Failure {
    /// The text of the `FailedMount` event.
    pub fn event(&self) -> String {
        // Our own wait has a text of its own, the rest is upstream's.
        if self.message.ends_with(" is not mounted") {
            self.message.clone()
        } else {
            format!("MountVolume.SetUp failed for volume {:?} : {}", self.volume, self.message)
        }
    }
}

/// Sets up every volume of the pod, and brings payloads up to date. Idempotent.
///
/// # Errors
/// All volumes that failed; the others are ready.
pub fn set_up(request: &Request<'_>) -> Result<BTreeMap<String, Ready>, Vec<Failure>> {
    let (mut ready, mut failures) = (BTreeMap::new(), Vec::new());
    if let Err(message) = prepare_dir(request.dir) {
        failures.push(Failure { volume: "pod".to_owned(), message });
        return Err(failures);
    }
    for volume in volumes(request.pod) {
        match one(request, volume) {
            Ok(done) => drop(ready.insert(volume.name.clone(), done)),
            Err(message) => failures.push(Failure { volume: volume.name.clone(), message }),
        }
    }
    if failures.is_empty() { Ok(ready) } else { Err(failures) }
}

/// Brings the payloads of running containers up to date: Secrets, ConfigMaps, the downward API, tokens.
///
/// # Errors
/// All volumes that failed; they keep what they have.
pub fn refresh(request: &Request<'_>) -> Result<(), Vec<Failure>> {
    let mut failures = Vec::new();
    for volume in volumes(request.pod) {
        if let Some(Err(message)) = write_payload(request, volume) {
            failures.push(Failure { volume: volume.name.clone(), message });
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// Unmounts and deletes everything that [`set_up`] and [`binds`] made.
///
/// # Errors
/// When something stays mounted.
pub fn tear_down(dir: &Path) -> io::Result<()> {
    // The mark goes last: half of a directory is still known to be ours.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.file_name() != MARKER) {
        if entry.file_type()?.is_dir() {
            mounts::remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    mounts::remove_tree(dir)
}

/// Whether a directory below `pods` was made by this node, or is empty, as one whose making was cut short.
pub fn is_ours(dir: &Path) -> bool {
    dir.join(MARKER).exists() || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn prepare_dir(dir: &Path) -> Result<(), String> {
    let made = fs::create_dir_all(dir).and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o750)));
    made.and_then(|()| fs::write(dir.join(MARKER), ""))
        .map_err(|error| format!("error making pod data directories: {error}"))
}

fn place(request: &Request<'_>, kind: &str, name: &str) -> PathBuf {
    request.dir.join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
}

fn one(request: &Request<'_>, volume: &Volume) -> Result<Ready, String> {
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        let mounted = mounts::mounted().map_err(|error| error.to_string())?;
        if let Some(missing) = host_path::unmounted(&path, request.declared, &mounted) {
            return Err(format!("{} is not mounted", missing.display()));
        }
        host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(Ready { path, read_only: false });
    }
    if let Some(source) = &volume.empty_dir {
        return empty_dir(request, volume, source);
    }
    if volume.image.is_some() {
        // It is pulled and mounted with the first container that mounts it. Source: pkg/volume/image, which does nothing.
        return Ok(Ready { path: image_place(request.dir, &volume.name), read_only: true });
    }
    match write_payload(request, volume) {
        Some(written) => written.map(|path| Ready { path, read_only: true }),
        None => Err(format!("volumes of type {} are not supported by this node", kind_of(volume))),
    }
}

/// Where an emptyDir of the pod with this directory is.
pub fn empty_dir_place(dir: &Path, volume: &str) -> PathBuf {
    dir.join("volumes/kubernetes.io~empty-dir").join(volume)
}

/// Where an image volume of the pod with this directory is mounted.
pub fn image_place(dir: &Path, volume: &str) -> PathBuf {
    dir.join("volumes/kubernetes.io~image").join(volume)
}

fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key.clone());
    keys.into_iter().find(|key| key != "name").unwrap_or_else(|| "unknown".to_owned())
}

fn empty_dir(request: &Request<'_>, volume: &Volume, source: &EmptyDirVolumeSource) -> Result<Ready, String> {
    let path = empty_dir_place(request.dir, &volume.name);
    let fresh = !path.exists();
    let made = match source.medium.as_deref().unwrap_or_default() {
        "" => fs::create_dir_all(&path),
        "Memory" => mounts::tmpfs(&path, memory_size(request.pod, source), 0o777),
        other => return Err(format!("unknown storage medium {other:?}")),
    };
    let result = made.and_then(|()| {
        if !fresh {
            return Ok(());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        match payload::fs_group(request.pod) {
            Some(group) => atomic::own(&path, group, true),
            None => Ok(()),
        }
    });
    result.map_err(|error| format!("emptyDir {}: {error}", path.display()))?;
    Ok(Ready { path, read_only: false })
}

/// Source: emptydir `calculateEmptyDirMemorySize`: the smaller of the volume's and the pod's limit.
fn memory_size(pod: &Pod, source: &EmptyDirVolumeSource) -> Option<u64> {
    let own = source.size_limit.as_ref().and_then(|text| text.0.parse::<api::quantity::Quantity>().ok());
    let own = own.and_then(|size| u64::try_from(size.value()).ok()).filter(|size| *size > 0);
    let of_pod = pod.spec.as_ref().and_then(|spec| resources::pod_cgroup(spec).memory_limit);
    own.into_iter().chain(of_pod).min()
}

/// Writes the files of a payload volume and returns its directory; `None` for other kinds.
fn write_payload(request: &Request<'_>, volume: &Volume) -> Option<Result<PathBuf, String>> {
    let (kind, payload) = payload_of(request, volume)?;
    Some(payload.and_then(|payload| {
        let path = place(request, kind, &volume.name);
        let made = match kind {
            // What is secret never reaches a disk.
            "secret" | "projected" => mounts::tmpfs(&path, None, 0o755),
            _ => fs::create_dir_all(&path),
        };
        let written = made.and_then(|()| atomic::write(&path, &payload, payload::fs_group(request.pod), request.stamp));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }))
}

fn payload_of(request: &Request<'_>, volume: &Volume) -> Option<(&'static str, Result<Payload, String>)> {
    if let Some(source) = &volume.secret {
        Some(("secret", payload::secret(source, request.sources)))
    } else if let Some(source) = &volume.config_map {
        Some(("configmap", payload::config_map(source, request.sources)))
    } else if let Some(source) = &volume.downward_api {
        Some((
            "downward-api",
            payload::downward(source.items.as_ref(), source.default_mode, request.pod, request.facts),
        ))
    } else if let Some(source) = &volume.projected {
        let none = Vec::new();
        let tokens = request.tokens.get(&volume.name).unwrap_or(&none);
        Some(("projected", payload::projected(source, request.pod, request.sources, request.facts, tokens)))
    } else {
        None
    }
}

/// The container's volume mounts as binds; sub-paths are opened and pinned below `dir`.
///
/// # Errors
/// In upstream's words, fit for `CreateContainerConfigError`.
pub fn binds(
    container: &Container,
    ready: &BTreeMap<String, Ready>,
    env: &BTreeMap<String, String>,
    dir: &Path,
) -> Result<Vec<Bind>, String> {
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err("volumeDevices: block volumes are not supported by this node".to_owned());
    }
    let mounts = container.volume_mounts.iter().flatten().enumerate();
    mounts.map(|(index, mount)| bind(container, index, mount, ready, env, dir)).collect()
}

fn bind(
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    ready: &BTreeMap<String, Ready>,
    env: &BTreeMap<String, String>,
    dir: &Path,
) -> Result<Bind, String> {
    let name = &container.name;
    let volume = ready
        .get(&mount.name)
        .ok_or_else(|| format!("cannot find volume {:?} to mount into container {name:?}", mount.name))?;
    let sub = sub_path(mount, env)?;
    let source = if sub.is_empty() {
        volume.path.clone()
    } else {
        if sub.starts_with('/') {
            return Err(format!("error SubPath `{sub}` must not be an absolute path"));
        }
        if sub.split('/').any(|part| part == "..") {
            return Err(format!("unable to provision SubPath `{sub}`: must not contain '..'"));
        }
        let place = dir.join("volume-subpaths").join(&mount.name).join(name).join(index.to_string());
        let pinned = mounts::open_sub_path(&volume.path, &sub).and_then(|open| mounts::bind(&open, &place));
        pinned.map_err(|error| {
            // The details would tell about the host's files.
            tracing::warn!(%error, volume = mount.name, container = name, "sub-path not mounted");
            format!("failed to prepare subPath for volumeMount {:?} of container {name:?}", mount.name)
        })?;
        place
    };
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("None") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => return Err(format!("invalid MountPropagation mode: {other:?}")),
    };
    let target =
        if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    Ok(Bind {
        source,
        target,
        read_only: volume.read_only || mount.read_only == Some(true),
        recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation,
    })
}

/// Source: container/helpers.go, `ExpandContainerVolumeMounts`: a reference to nothing is an error here.
fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, String>) -> Result<String, String> {
    let Some(expression) = mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) else {
        return Ok(mount.sub_path.clone().unwrap_or_default());
    };
    let missing = std::cell::Cell::new(false);
    let path = expand(expression, |name| {
        let value = env.get(name).cloned();
        missing.set(missing.get() || value.is_none());
        value
    });
    if missing.get() { Err(format!("missing value for {expression:?}")) } else { Ok(path) }
}

/// Whether the pod has payloads that change while it runs.
pub fn has_payloads(pod: &Pod) -> bool {
    volumes(pod).any(|volume| {
        volume.secret.is_some()
            || volume.config_map.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
    })
}

/// Sources that hold an object until it is replaced, for tests and for gathered snapshots.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub config_maps: BTreeMap<String, Arc<k8s_openapi::api::core::v1::ConfigMap>>,
    pub secrets: BTreeMap<String, Arc<k8s_openapi::api::core::v1::Secret>>,
}

impl Lookup for Snapshot {
    fn config_map(&self, name: &str) -> Option<Arc<k8s_openapi::api::core::v1::ConfigMap>> {
        self.config_maps.get(name).cloned()
    }

    fn secret(&self, name: &str) -> Option<Arc<k8s_openapi::api::core::v1::Secret>> {
        self.secrets.get(name).cloned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ops::Deref;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::{Value, json};

    use super::*;

    /// A directory that is gone after the test, with everything mounted in it.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("coracle-node-{}-{count}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Deref for TempDir {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            mounts::remove_tree(&self.0).ok();
        }
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn secrets(data: &str) -> Snapshot {
        let secret = serde_json::from_value(json!({"data": {"key": data}})).unwrap();
        Snapshot { secrets: BTreeMap::from([("s".to_owned(), Arc::new(secret))]), ..Snapshot::default() }
    }

    fn run(pod: &Pod, dir: &Path, sources: &Snapshot, stamp: &str) -> Result<BTreeMap<String, Ready>, Vec<Failure>> {
        let (facts, tokens) = (Facts::default(), BTreeMap::new());
        set_up(&Request { pod, dir, sources, facts: &facts, tokens: &tokens, declared: &[], stamp })
    }

    #[test]
    fn a_pods_volumes_come_change_and_go() {
        let temp = TempDir::new();
        let dir = temp.join("pods/u");
        let pod = pod(json!({"securityContext": {"fsGroup": 4242}, "containers": [], "volumes": [
            {"name": "secret", "secret": {"secretName": "s"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]}));
        let ready = run(&pod, &dir, &secrets("eA=="), "one").unwrap();
        let key = ready["secret"].path.join("key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "x");
        use std::os::unix::fs::MetadataExt;
        assert_eq!((fs::metadata(&key).unwrap().gid(), fs::metadata(&key).unwrap().mode() & 0o7777), (4242, 0o644));
        let scratch = fs::metadata(&ready["scratch"].path).unwrap();
        assert_eq!((scratch.gid(), scratch.mode() & 0o7777), (4242, 0o2777));
        assert!(mounts::mounted().unwrap().contains(&ready["fast"].path));
        fs::write(ready["scratch"].path.join("kept"), "1").unwrap();
        let again = run(&pod, &dir, &secrets("eQ=="), "two").unwrap();
        assert_eq!(again, ready);
        assert_eq!(fs::read_to_string(&key).unwrap(), "y");
        assert!(ready["scratch"].path.join("kept").exists());
        tear_down(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn every_failure_is_named() {
        let temp = TempDir::new();
        let pod = pod(json!({"containers": [], "volumes": [
            {"name": "a", "secret": {"secretName": "none"}},
            {"name": "b", "hostPath": {"path": temp.join("none"), "type": "Directory"}},
            {"name": "c", "nfs": {"server": "nas", "path": "/"}},
        ]}));
        let failures = run(&pod, &temp.join("pods/u"), &Snapshot::default(), "one").unwrap_err();
        let texts: Vec<String> = failures.iter().map(Failure::event).collect();
        assert_eq!(
            texts,
            [
                "MountVolume.SetUp failed for volume \"a\" : secret \"none\" not found".to_owned(),
                format!(
                    "MountVolume.SetUp failed for volume \"b\" : hostPath type check failed: {} is not a directory",
                    temp.join("none").display()
                ),
                "MountVolume.SetUp failed for volume \"c\" : volumes of type nfs are not supported by this node"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn sub_paths_are_pinned_and_expanded() {
        let temp = TempDir::new();
        let volume = temp.join("v");
        fs::create_dir(&volume).unwrap();
        let ready = BTreeMap::from([("v".to_owned(), Ready { path: volume.clone(), read_only: false })]);
        let env = BTreeMap::from([("POD".to_owned(), "web-0".to_owned())]);
        let check = |mount: Value| {
            let container = json!({"name": "c", "volumeMounts": [mount]});
            binds(&serde_json::from_value(container).unwrap(), &ready, &env, &temp.join("pod"))
        };
        let found = check(json!({"name": "v", "mountPath": "/data", "subPathExpr": "$(POD)/x"})).unwrap();
        assert_eq!(found[0].source, temp.join("pod/volume-subpaths/v/c/0"));
        assert!(volume.join("web-0/x").is_dir());
        let error = |mount| check(mount).unwrap_err();
        assert_eq!(
            error(json!({"name": "v", "mountPath": "/d", "subPathExpr": "$(NO)"})),
            "missing value for \"$(NO)\""
        );
        assert_eq!(
            error(json!({"name": "db", "mountPath": "/d"})),
            "cannot find volume \"db\" to mount into container \"c\""
        );
    }
}
