//! The control loops: pure decisions, and one shell that carries them out.
//!
//! Each controller is a module with `Observed`, `reconcile(&Observed) -> Vec<Action>`, and a small type that gathers the
//! one and hands on the other for the [`shell`]. They share informers, and write each as its own identity.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::key::GroupResource;
use client::events::Recorder;
use client::informer::Informers;
use client::{Client, Clock, Resource};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::shell::{Controller, Setting};

pub mod action;
pub mod claim;
pub mod cluster_role_aggregation;
pub mod deployment;
pub mod endpoint_slice;
pub mod endpoint_slice_mirroring;
pub mod endpoints;
pub mod garbage;
pub mod indexes;
pub mod namespace;
pub mod node_lifecycle;
pub mod pod;
pub mod pod_gc;
pub mod pod_rank;
pub mod replica_set;
pub mod root_ca;
pub mod service;
pub mod service_account;
pub mod shell;
pub mod taint_eviction;
#[cfg(test)]
mod testing;
pub mod views;

/// What the controllers need from the process that runs them.
pub struct Config {
    /// Returns a client that acts as the user of this name.
    pub client_for: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    pub clock: Clock,
    /// Every resource that the server stores: what namespace deletion empties and garbage collection follows.
    pub served: Vec<Served>,
    /// PEM of the certificates by which pods know the API server; what is sent later replaces what was published.
    pub root_ca: watch::Receiver<String>,
}

/// One resource that the server stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub resource: Resource,
    pub kind: String,
    pub is_namespaced: bool,
    /// Whether objects of it can be deleted.
    pub is_deletable: bool,
}

impl Served {
    /// Such as `apps/v1`.
    pub fn api_version(&self) -> String {
        let (group, version) = (&self.resource.resource.group, self.resource.version);
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
    }
}

/// The identity under which the informers read.
const READER: &str = "system:kube-controller-manager";

/// Runs all controllers until `cancel` is cancelled.
///
/// One that panics while deciding fails that key alone, which is tried again.
pub async fn run(config: Config, cancel: CancellationToken) {
    let reader = (config.client_for)(READER);
    let mut informers = Informers::new(&cancel);
    let mut followed = BTreeMap::new();
    for served in &config.served {
        let indexes = if served.resource == Resource::of::<Pod>() { indexes::PODS } else { indexes::COMMON };
        let informer = informers.start(&reader, served.resource.everywhere(), indexes);
        followed.insert(served.resource.resource.clone(), informer);
    }
    let mut recorders = JoinSet::new();
    let mut controllers = JoinSet::new();
    for controller in controllers_of(&config) {
        let missing: Vec<GroupResource> =
            controller.inputs().into_iter().filter(|input| !followed.contains_key(input)).collect();
        if !missing.is_empty() {
            tracing::error!(
                controller = controller.name(),
                ?missing,
                "not started: the server lacks resources it needs"
            );
            continue;
        }
        let client = (config.client_for)(&format!("system:serviceaccount:kube-system:{}", controller.account()));
        let recorder = Recorder::start(
            client.clone(),
            controller.name(),
            "",
            config.clock.clone(),
            &mut recorders,
            cancel.clone(),
        );
        let setting = Setting { informers: followed.clone(), client, recorder, clock: config.clock.clone() };
        controllers.spawn(shell::run(controller, Arc::new(setting), cancel.clone()));
    }
    while let Some(ended) = controllers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
    informers.stop().await;
    recorders.shutdown().await;
}

fn controllers_of(config: &Config) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(deployment::Deployments),
        Arc::new(replica_set::Sets::<ReplicaSet>::default()),
        Arc::new(replica_set::Sets::<ReplicationController>::default()),
        Arc::new(endpoint_slice::EndpointSlices),
        Arc::new(endpoint_slice_mirroring::EndpointSliceMirroring),
        Arc::new(endpoints::EndpointsObjects),
        Arc::new(namespace::Namespaces::new(&config.served)),
        Arc::new(garbage::Garbage::new(&config.served)),
        Arc::new(node_lifecycle::NodeLifecycle::default()),
        Arc::new(taint_eviction::TaintEviction::default()),
        Arc::new(pod_gc::PodGc::default()),
        Arc::new(service_account::ServiceAccounts),
        Arc::new(cluster_role_aggregation::ClusterRoleAggregation::default()),
        Arc::new(root_ca::RootCas { root_ca: config.root_ca.clone() }),
    ]
}
