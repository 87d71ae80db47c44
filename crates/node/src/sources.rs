//! The Secrets and ConfigMaps that this node's pods use: one watch for each, shared, and gone with the last pod that needs it.
//!
//! A node sees only objects that its pods name, as the Node authorizer demands. Source: pkg/kubelet/util/manager, the
//! watch-based manager.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::object::Object;
use client::informer::{Changes, Informer, Informers};
use client::{Client, Resource};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use tokio_util::sync::CancellationToken;

use crate::volumes::Snapshot;

/// How long the first answer about an object may take.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

/// An object in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub kind: Kind,
    pub name: String,
}

/// Everything that the pod's volumes and variables name.
pub fn named_by(pod: &Pod) -> BTreeSet<Name> {
    let mut all = BTreeSet::new();
    let Some(spec) = &pod.spec else { return all };
    let mut add = |kind, name: &str| {
        all.insert(Name { kind, name: name.to_owned() });
    };
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.secret {
            add(Kind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        if let Some(source) = &volume.config_map {
            add(Kind::ConfigMap, &source.name);
        }
        for projection in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(source) = &projection.secret {
                add(Kind::Secret, &source.name);
            }
            if let Some(source) = &projection.config_map {
                add(Kind::ConfigMap, &source.name);
            }
        }
    }
    let ephemeral = crate::pod_machine::ephemeral_containers(spec);
    for container in spec.init_containers.iter().flatten().chain(&spec.containers).chain(&ephemeral) {
        for source in container.env_from.iter().flatten() {
            if let Some(source) = &source.secret_ref {
                add(Kind::Secret, &source.name);
            }
            if let Some(source) = &source.config_map_ref {
                add(Kind::ConfigMap, &source.name);
            }
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(key) = &source.secret_key_ref {
                add(Kind::Secret, &key.name);
            }
            if let Some(key) = &source.config_map_key_ref {
                add(Kind::ConfigMap, &key.name);
            }
        }
    }
    all
}

/// One watched object.
pub struct Watched {
    informer: Informer,
    /// Ends the watch when dropped.
    _informers: Informers,
}

type Registry = BTreeMap<(String, Name), Weak<Watched>>;

/// The node's watched objects. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    client: Client,
    cancel: CancellationToken,
    watched: Arc<Mutex<Registry>>,
}

impl Sources {
    pub fn new(client: Client, cancel: CancellationToken) -> Self {
        Self { client, cancel, watched: Arc::default() }
    }

    /// Watches an object as long as the result lives.
    fn watch(&self, namespace: &str, name: &Name) -> Arc<Watched> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, entry| entry.strong_count() > 0);
        let key = (namespace.to_owned(), name.clone());
        if let Some(found) = watched.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let resource = match name.kind {
            Kind::ConfigMap => Resource::of::<ConfigMap>(),
            Kind::Secret => Resource::of::<Secret>(),
        };
        let mut scope = resource.everywhere();
        scope.namespace = Some(namespace.to_owned());
        scope.field_selector = format!("metadata.name={}", name.name);
        let mut informers = Informers::new(&self.cancel);
        let informer = informers.start(&self.client, scope, &[]);
        let found = Arc::new(Watched { informer, _informers: informers });
        watched.insert(key, Arc::downgrade(&found));
        found
    }

    /// Watches everything that the pod names.
    pub fn of_pod(&self, pod: &Pod) -> PodSources {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let watched = named_by(pod).into_iter().map(|name| {
            let watched = self.watch(&namespace, &name);
            (name, watched)
        });
        PodSources { watched: watched.collect(), namespace }
    }
}

/// What one pod's volumes and variables are made of.
#[derive(Clone)]
pub struct PodSources {
    watched: BTreeMap<Name, Arc<Watched>>,
    namespace: String,
}

impl PodSources {
    /// The objects as they are now. Waits until each was looked for once.
    ///
    /// # Errors
    /// When the API does not answer in time, in upstream's words.
    pub async fn snapshot(&self) -> Result<Snapshot, String> {
        let mut snapshot = Snapshot::default();
        for (name, watched) in &self.watched {
            let view = match tokio::time::timeout(SYNC_TIMEOUT, watched.informer.synced()).await {
                Ok(Ok(view)) => view,
                Ok(Err(_)) | Err(_) => {
                    let kind = if name.kind == Kind::Secret { "secret" } else { "configmap" };
                    return Err(format!("failed to sync {kind} cache: timed out waiting for the condition"));
                }
            };
            let Some(object) = view.named(&self.namespace, &name.name) else { continue };
            match name.kind {
                Kind::ConfigMap => {
                    snapshot.config_maps.insert(name.name.clone(), decode(object)?);
                }
                Kind::Secret => {
                    snapshot.secrets.insert(name.name.clone(), decode(object)?);
                }
            }
        }
        Ok(snapshot)
    }

    /// Subscriptions that wake up when any of the objects changes, the first time at once.
    pub fn subscribe(&self) -> Vec<Changes> {
        self.watched.values().map(|watched| watched.informer.subscribe()).collect()
    }
}

fn decode<T: serde::de::DeserializeOwned>(object: &Object) -> Result<Arc<T>, String> {
    object.decode().map(Arc::new).map_err(|error| format!("{} cannot be read: {error}", object.key()))
}
