//! A server in memory, the controllers, the scheduler, and a kubelet that reports every pod as ready at once.

use std::sync::Arc;
use std::time::Duration;

use api::key::GroupResource;
use client::informer::{Informers, subscribe};
use client::{Client, Clock, DeleteOptions, PatchType, Resource};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use serde::de::DeserializeOwned;
use serde_json::json;
use server::authz::ClusterAuthorizer;
use server::identity::{Everybody, User};
use server::server::{Server, ServerConfig};
use store::memory::Memory;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::PATIENCE;

pub struct Cluster {
    pub client: Client,
    pub clock: Clock,
    pub root_ca: watch::Sender<String>,
    _tasks: JoinSet<()>,
    _stop: DropGuard,
}

pub fn from_yaml<K: DeserializeOwned>(yaml: &str) -> K {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    serde_json::from_value(value).unwrap()
}

/// The time of day by tokio's clock, which a test can let run.
fn clock() -> Clock {
    let (day, start) = (jiff::Timestamp::now(), tokio::time::Instant::now());
    Arc::new(move || day + start.elapsed())
}

fn random(out: &mut [u8]) {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), out).unwrap();
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|client| client).await
    }

    /// Starts one whose components reach the server through `transport`.
    pub async fn start_with(transport: fn(Client) -> Client) -> Self {
        let everybody = Arc::new(Everybody(User::loopback("tester")));
        let (clock, store) = (clock(), Memory::new());
        let authorizer = Arc::new(ClusterAuthorizer::new(store.clone()));
        let rng: server::hooks::Rng = Arc::new(random);
        let mut config =
            ServerConfig::new(store, kinds::registry(), everybody, authorizer.clone(), clock.clone(), rng.clone());
        config.admission = server::admission::chain(authorizer, rng);
        let server = Server::new(config);
        let served = server.registry.catalog.kinds().iter().map(|kind| served(kind));
        let served: Vec<controllers::Served> = served.collect();
        let client_for = {
            let server = server.clone();
            Arc::new(move |name: &str| {
                let is_account = name.starts_with("system:serviceaccount:");
                let accounts: &[&str] = &["system:serviceaccounts", "system:serviceaccounts:kube-system"];
                let groups = [if is_account { accounts } else { &[] }, &["system:authenticated"]].concat();
                transport(server.local(User::new(name, &groups)))
            })
        };
        let client = server.local(User::loopback("tester"));
        for name in server::bootstrap::NAMESPACES {
            let namespace = format!("{{metadata: {{name: {name}}}}}");
            client.create::<Namespace>(&from_yaml(&namespace)).await.unwrap();
        }
        for initial in server::bootstrap::roles_and_bindings() {
            let of = Resource { resource: GroupResource::new(initial.group, initial.resource), version: "v1" };
            let namespace = initial.object["metadata"]["namespace"].as_str().unwrap_or_default();
            client.create_object(&of, namespace, initial.object.clone()).await.unwrap();
        }
        let (root_ca, published) = watch::channel("PEM".to_owned());
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let config =
            controllers::Config { client_for: client_for.clone(), clock: clock.clone(), served, root_ca: published };
        tasks.spawn(controllers::run(config, cancel.clone()));
        let config = scheduler::Config { client_for, clock: clock.clone() };
        tasks.spawn(scheduler::run(config, cancel.clone()));
        tasks.spawn(kubelet(client.clone(), cancel.clone()));
        let cluster = Self { client, clock, root_ca, _tasks: tasks, _stop: cancel.drop_guard() };
        let account = async || cluster.client.get::<ServiceAccount>("default", "default").await.ok();
        cluster.until("the default account", account).await;
        cluster
    }

    pub async fn add_node(&self, name: &str, cpu: &str) {
        let node = format!(
            "{{metadata: {{name: {name}}}, status: {{allocatable: {{cpu: '{cpu}', memory: 8Gi, pods: '110'}}, \
             conditions: [{{type: Ready, status: 'True'}}]}}}}"
        );
        let created = self.client.create::<Node>(&from_yaml(&node)).await.unwrap();
        let mut ready: Node = from_yaml(&node);
        ready.metadata = created.metadata;
        // Controllers may write the node meanwhile.
        let patch = json!({"status": ready.status});
        self.client.patch_status::<Node>("", name, PatchType::Merge, patch).await.unwrap();
    }

    /// Waits until a question has an answer.
    pub async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let answer = async {
            let mut pause = Duration::from_millis(10);
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => panic!("waited in vain for {what}:\n{}", self.dump().await),
        }
    }

    /// Waits until a Deployment in `default` is rolled out, as `kubectl rollout status` does.
    pub async fn complete(&self, name: &str, replicas: i32) -> Deployment {
        self.until("the rollout", async || {
            let deployment = self.client.get::<Deployment>("default", name).await.unwrap();
            let status = deployment.status.clone()?;
            let all = |count: Option<i32>| count.unwrap_or(0) == replicas;
            let done = status.observed_generation >= deployment.metadata.generation
                && all(status.updated_replicas)
                && all(status.replicas)
                && all(status.available_replicas);
            done.then_some(deployment)
        })
        .await
    }

    pub async fn pod_names(&self) -> Vec<String> {
        let pods = self.client.list::<Pod>("default", "").await.unwrap();
        pods.into_iter().filter_map(|pod| pod.metadata.name).collect()
    }

    async fn dump(&self) -> String {
        let mut shown = String::new();
        for of in ["deployments", "replicasets"] {
            let of = Resource::new("apps", "v1", if of == "deployments" { "deployments" } else { "replicasets" });
            for object in self.client.list_objects(of.everywhere()).await.unwrap().objects {
                shown.push_str(&format!("{}\n", object.value()));
            }
        }
        for object in self.client.list_objects(Resource::of::<Pod>().everywhere()).await.unwrap().objects {
            shown.push_str(&format!("{}\n", object.value()));
        }
        shown
    }
}

fn served(kind: &kinds::kind::Kind) -> controllers::Served {
    use kinds::kind::{Scope, Verb};
    let version: &'static str = match &kind.versions[0].version {
        std::borrow::Cow::Borrowed(version) => version,
        std::borrow::Cow::Owned(_) => unreachable!("built-in kinds"),
    };
    controllers::Served {
        resource: Resource { resource: kind.names.resource.clone(), version },
        kind: kind.names.kind.to_string(),
        is_namespaced: kind.scope == Scope::Namespaced,
        is_deletable: kind.verbs.contains(&Verb::Delete) && kind.verbs.contains(&Verb::Watch),
    }
}

/// Reports bound pods as ready, and lets deleted ones go.
async fn kubelet(client: Client, cancel: CancellationToken) {
    let mut informers = Informers::new(&cancel);
    let pods = informers.start(&client, Resource::of::<Pod>().everywhere(), &[]);
    let mut changes = subscribe([&pods]);
    let mut addresses = 0u32;
    while !cancel.is_cancelled() {
        for delta in changes.next().await {
            let Some(pod) = delta.new.and_then(|pod| pod.decode::<Pod>().ok()) else { continue };
            let (namespace, name) = (pod.metadata.namespace.unwrap(), pod.metadata.name.unwrap());
            let bound = pod.spec.is_some_and(|spec| spec.node_name.is_some());
            if pod.metadata.deletion_timestamp.is_some() {
                let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                let _gone_already = client.delete::<Pod>(&namespace, &name, now).await;
            } else if bound && pod.status.is_none_or(|status| status.pod_ip.is_none()) {
                addresses += 1;
                let ip = format!("10.244.{}.{}", addresses / 250, addresses % 250 + 1);
                let status = json!({
                    "phase": "Running",
                    "podIP": ip,
                    "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                });
                let patch = json!({"status": status});
                let _gone_already = client.patch_status::<Pod>(&namespace, &name, PatchType::Strategic, patch).await;
            }
        }
    }
}
