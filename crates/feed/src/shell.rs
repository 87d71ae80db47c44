//! The feed's loop: watches the objects, compiles them, keeps the edge at the result, and tells the owners of Ingresses.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::object::Object;
use client::events::{Recorder, Severity, reference_to};
use client::informer::{Informer, Informers, Stopped, View, subscribe};
use client::{Client, PatchType, Resource, system_clock};
use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wire::edge::{Socket, Table};

use crate::compile::{Compiled, Finding, Observed, Settings, compile};
use crate::link::{Applied, Link};

/// Changes within this time become one table: a rollout changes slices many times in a row.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How long to wait before a status is written again that could not be.
const STATUS_RETRY: Duration = Duration::from_secs(5);
/// The component that events name.
const COMPONENT: &str = "ingress-controller";

/// What the feed needs to know.
pub struct Config {
    /// Acts as `system:serviceaccount:kube-system:ingress-controller`.
    pub client: Client,
    pub node_name: String,
    /// Where Ingresses are reached.
    pub node_ips: Vec<IpAddr>,
    /// The Unix socket on which the edge listens.
    pub control: PathBuf,
    /// The sockets that the edge shall accept on. An edge that lacks one gets it.
    pub listeners: Vec<(Socket, OwnedFd)>,
    pub settings: Settings,
    /// Whether an edge uses the table of this main.
    pub ready: watch::Sender<bool>,
}

/// Runs until cancelled. The edge goes on with the last table.
pub async fn run(config: Config, cancel: CancellationToken) {
    let mut tasks = JoinSet::new();
    let (wanted, receiver) = watch::channel(None);
    let (applied_sender, applied) = watch::channel(None);
    let link = Link { control: config.control, listeners: config.listeners, wanted: receiver, applied: applied_sender };
    let stop = cancel.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(link.run()).await;
    });
    let recorder = Recorder::start(
        config.client.clone(),
        COMPONENT,
        &config.node_name,
        system_clock(),
        &mut tasks,
        cancel.clone(),
    );
    let feed = Feed {
        client: config.client,
        node_ips: config.node_ips,
        settings: Arc::new(config.settings),
        ready: config.ready,
        recorder,
        wanted,
        applied,
        told: Vec::new(),
        announced: Vec::new(),
    };
    cancel.run_until_cancelled(feed.work(&cancel)).await;
    tasks.shutdown().await;
}

struct Feed {
    client: Client,
    node_ips: Vec<IpAddr>,
    settings: Arc<Settings>,
    ready: watch::Sender<bool>,
    recorder: Recorder,
    wanted: watch::Sender<Option<Arc<Table>>>,
    applied: watch::Receiver<Option<Applied>>,
    /// Findings that were told already.
    told: Vec<Finding>,
    /// Ingresses whose version was acknowledged with an event: uid and generation.
    announced: Vec<(String, i64)>,
}

struct Sources {
    ingresses: Informer,
    classes: Informer,
    services: Informer,
    slices: Informer,
    secrets: Informer,
}

impl Sources {
    fn start(informers: &mut Informers, client: &Client) -> Self {
        let mut secrets = Resource::of::<Secret>().everywhere();
        secrets.field_selector = "type=kubernetes.io/tls".to_owned();
        Self {
            ingresses: informers.start(client, Resource::of::<Ingress>().everywhere(), &[]),
            classes: informers.start(client, Resource::of::<IngressClass>().everywhere(), &[]),
            services: informers.start(client, Resource::of::<Service>().everywhere(), &[]),
            slices: informers.start(client, Resource::of::<EndpointSlice>().everywhere(), &[]),
            secrets: informers.start(client, secrets, &[]),
        }
    }

    fn all(&self) -> [&Informer; 5] {
        [&self.ingresses, &self.classes, &self.services, &self.slices, &self.secrets]
    }

    async fn synced(&self) -> Result<(), Stopped> {
        for informer in self.all() {
            informer.synced().await?;
        }
        Ok(())
    }
}

impl Feed {
    async fn work(mut self, cancel: &CancellationToken) {
        let mut informers = Informers::new(cancel);
        let sources = Sources::start(&mut informers, &self.client);
        let mut changes = subscribe(sources.all());
        if sources.synced().await.is_err() {
            return;
        }
        let mut compiled = Compiled::default();
        let mut retry = Duration::ZERO;
        loop {
            tokio::select! {
                _ = changes.next() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    retry = self.recompile(&sources, &mut compiled).await;
                }
                () = tokio::time::sleep(retry), if !retry.is_zero() => {
                    retry = self.recompile(&sources, &mut compiled).await;
                }
                changed = self.applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.note_applied(&compiled);
                }
            }
        }
    }

    /// Makes the table anew; returns when to do so again although nothing changed, or zero.
    async fn recompile(&mut self, sources: &Sources, compiled: &mut Compiled) -> Duration {
        let ingresses: Vec<Ingress> = decoded(&sources.ingresses.view());
        let classes: Vec<IngressClass> = decoded(&sources.classes.view());
        let services: Vec<Service> = decoded(&sources.services.view());
        let slices: Vec<EndpointSlice> = decoded(&sources.slices.view());
        let secrets: Vec<Secret> = decoded(&sources.secrets.view());
        let settings = self.settings.clone();
        let observed = Observed {
            settings: &settings,
            ingresses: ingresses.iter().collect(),
            classes: classes.iter().collect(),
            services: services.iter().collect(),
            slices: slices.iter().collect(),
            secrets: secrets.iter().collect(),
        };
        *compiled = compile(&observed);
        let table = Arc::new(compiled.table.clone());
        self.wanted.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&table);
            *before = Some(table);
            changed
        });
        let ours: Vec<&Ingress> = compiled.ours.iter().map(|index| observed.ingresses[*index]).collect();
        self.announce(&ours);
        self.tell(compiled.findings.clone());
        self.publish_addresses(&ours).await
    }

    /// Tells that an Ingress is followed, once for each version of its spec.
    fn announce(&mut self, ours: &[&Ingress]) {
        let version = |ingress: &Ingress| {
            (ingress.metadata.uid.clone().unwrap_or_default(), ingress.metadata.generation.unwrap_or_default())
        };
        for ingress in ours.iter().filter(|ingress| !self.announced.contains(&version(ingress))) {
            self.recorder.event(&reference_to(*ingress), Severity::Normal, "Sync", "Scheduled for sync");
        }
        self.announced = ours.iter().map(|ingress| version(ingress)).collect();
    }

    fn tell(&mut self, findings: Vec<Finding>) {
        for finding in findings.iter().filter(|finding| !self.told.iter().any(|told| same(told, finding))) {
            self.recorder.event(&finding.about, Severity::Warning, finding.reason, finding.message.clone());
        }
        self.told = findings;
    }

    fn note_applied(&mut self, compiled: &Compiled) {
        let Some(applied) = self.applied.borrow_and_update().clone() else {
            self.ready.send_replace(false);
            return;
        };
        if !self.ready.send_replace(true) {
            info!(generation = applied.generation, "the edge is up to date");
        }
        // Indexes from the edge are not believed: they may point nowhere.
        let mut findings = compiled.findings.clone();
        for problem in &applied.problems {
            let owner: Option<&ObjectReference> =
                compiled.certificate_owners.get(problem.certificate).and_then(Option::as_ref);
            let Some(about) = owner.cloned() else { continue };
            let message = format!("the certificate cannot be used: {}", bounded(&problem.message));
            findings.push(Finding { about, reason: "CertificateInvalid", message });
        }
        self.tell(findings);
    }

    /// Writes where Ingresses are reached.
    async fn publish_addresses(&self, ours: &[&Ingress]) -> Duration {
        let wanted: Vec<String> = self.node_ips.iter().map(ToString::to_string).collect();
        let mut retry = Duration::ZERO;
        for ingress in ours {
            let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let published = status.and_then(|balancer| balancer.ingress.as_ref());
            let published: Vec<&str> =
                published.into_iter().flatten().filter_map(|entry| entry.ip.as_deref()).collect();
            if published == wanted {
                continue;
            }
            let entries: Vec<_> = wanted.iter().map(|ip| json!({ "ip": ip })).collect();
            let patch = json!({"status": {"loadBalancer": {"ingress": entries}}});
            let meta = &ingress.metadata;
            let (namespace, name) =
                (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
            match self.client.patch_status::<Ingress>(namespace, name, PatchType::Merge, patch).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    warn!(namespace, name, %error, "the Ingress's address could not be written");
                    retry = STATUS_RETRY;
                }
            }
        }
        retry
    }
}

/// Whether two findings are the same news: the object's version does not matter.
fn same(a: &Finding, b: &Finding) -> bool {
    a.about.uid == b.about.uid && a.reason == b.reason && a.message == b.message
}

/// Text of the edge's, made fit for an event.
fn bounded(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

fn decoded<T: DeserializeOwned>(view: &View) -> Vec<T> {
    let decode = |object: &Arc<Object>| match object.decode() {
        Ok(typed) => Some(typed),
        Err(error) => {
            warn!(key = %object.key(), %error, "object is not understood");
            None
        }
    };
    view.iter().filter_map(decode).collect()
}
