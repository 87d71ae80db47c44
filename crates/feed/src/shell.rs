//! The feed's loop: watches the objects, compiles them, keeps the edge at the result, and tells the owners of Ingresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
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
pub use crate::link::OpenLog;
use crate::link::{Applied, Link};

/// Changes within this time become one table: a rollout changes slices many times in a row.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How long to wait before a status is written again that could not be.
const STATUS_RETRY: Duration = Duration::from_secs(5);
/// The component that events name.
const COMPONENT: &str = "ingress-controller";

type NamespacedName = (String, String);

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
    pub open_log: OpenLog,
    pub settings: Settings,
    /// Whether an edge uses the table of this main.
    pub ready: watch::Sender<bool>,
}

/// Runs until cancelled. The edge goes on with the last table.
pub async fn run(config: Config, cancel: CancellationToken) {
    let mut tasks = JoinSet::new();
    let (wanted, receiver) = watch::channel(None);
    let (applied_sender, applied) = watch::channel(None);
    let (control, listeners, open_log) = (config.control, config.listeners, config.open_log);
    let link = Link { control, listeners, open_log, wanted: receiver, applied: applied_sender };
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
    let addresses: Vec<String> = config.node_ips.iter().map(ToString::to_string).collect();
    let (unpublished, receiver) = watch::channel(Vec::new());
    let publishing = publish(config.client.clone(), addresses.clone(), receiver);
    let stop = cancel.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(publishing).await;
    });
    let feed = Feed {
        client: config.client,
        addresses,
        unpublished,
        settings: config.settings,
        ready: config.ready,
        recorder,
        wanted,
        applied,
        told: Vec::new(),
        told_by_edge: Vec::new(),
        announced: Vec::new(),
    };
    cancel.run_until_cancelled(feed.work(&cancel)).await;
    tasks.shutdown().await;
}

struct Feed {
    client: Client,
    /// Where Ingresses are reached.
    addresses: Vec<String>,
    /// Those that do not say so yet.
    unpublished: watch::Sender<Vec<NamespacedName>>,
    settings: Settings,
    ready: watch::Sender<bool>,
    recorder: Recorder,
    wanted: watch::Sender<Option<Arc<Table>>>,
    applied: watch::Receiver<Option<Applied>>,
    /// Findings that were told already: those of the objects, and those of the edge.
    told: Vec<Finding>,
    told_by_edge: Vec<Finding>,
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
        let mut objects = Objects::default();
        // An empty cluster has a table too.
        let mut compiled = self.recompile(&sources, &mut objects);
        loop {
            tokio::select! {
                _ = changes.next() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    compiled = self.recompile(&sources, &mut objects);
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

    fn recompile(&mut self, sources: &Sources, objects: &mut Objects) -> Compiled {
        objects.follow(sources);
        let observed = objects.observed(&self.settings);
        let compiled = compile(&observed);
        let table = Arc::new(compiled.table.clone());
        self.wanted.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&table);
            *before = Some(table);
            changed
        });
        let ours: Vec<&Ingress> = compiled.ours.iter().map(|index| observed.ingresses[*index]).collect();
        let addresses: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        let unpublished = ours.iter().filter(|ingress| published(ingress) != addresses).map(|ingress| name(ingress));
        self.unpublished.send_replace(unpublished.collect());
        announce(&self.recorder, &mut self.announced, &ours);
        tell(&self.recorder, &mut self.told, compiled.findings.clone());
        compiled
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
        let mut findings = Vec::new();
        for problem in &applied.problems {
            let owner: Option<&ObjectReference> =
                compiled.certificate_owners.get(problem.certificate).and_then(Option::as_ref);
            let message = format!("the certificate cannot be used: {}", bounded(&problem.message));
            let Some(about) = owner.cloned() else {
                warn!(message, "the edge refuses a certificate that no Ingress asked for");
                continue;
            };
            findings.push(Finding { about, reason: "CertificateInvalid", message });
        }
        tell(&self.recorder, &mut self.told_by_edge, findings);
    }
}

/// Tells what is new.
fn tell(recorder: &Recorder, told: &mut Vec<Finding>, findings: Vec<Finding>) {
    for finding in findings.iter().filter(|finding| !told.iter().any(|told| same(told, finding))) {
        recorder.event(&finding.about, Severity::Warning, finding.reason, finding.message.clone());
    }
    *told = findings;
}

/// Tells that Ingresses are followed, once for each version of a spec.
fn announce(recorder: &Recorder, announced: &mut Vec<(String, i64)>, ours: &[&Ingress]) {
    let version = |ingress: &Ingress| {
        (ingress.metadata.uid.clone().unwrap_or_default(), ingress.metadata.generation.unwrap_or_default())
    };
    for ingress in ours.iter().filter(|ingress| !announced.contains(&version(ingress))) {
        recorder.event(&reference_to(*ingress), Severity::Normal, "Sync", "Scheduled for sync");
    }
    *announced = ours.iter().map(|ingress| version(ingress)).collect();
}

fn name(ingress: &Ingress) -> NamespacedName {
    (ingress.metadata.namespace.clone().unwrap_or_default(), ingress.metadata.name.clone().unwrap_or_default())
}

fn published(ingress: &Ingress) -> Vec<&str> {
    let balancer = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.and_then(|balancer| balancer.ingress.as_ref());
    entries.into_iter().flatten().filter_map(|entry| entry.ip.as_deref()).collect()
}

/// Writes where Ingresses are reached into those that do not say so. Apart from the feed's loop: no write delays a table.
async fn publish(client: Client, addresses: Vec<String>, mut unpublished: watch::Receiver<Vec<NamespacedName>>) {
    let entries: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let patch = json!({"status": {"loadBalancer": {"ingress": entries}}});
    loop {
        let names = unpublished.borrow_and_update().clone();
        let mut failed = false;
        for (namespace, name) in names {
            match client.patch_status::<Ingress>(&namespace, &name, PatchType::Merge, patch.clone()).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    warn!(namespace, name, %error, "the Ingress's address could not be written; trying again");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = unpublished.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(STATUS_RETRY), if failed => {}
        }
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

/// The objects of all kinds, decoded.
#[derive(Default)]
struct Objects {
    ingresses: Decoded<Ingress>,
    classes: Decoded<IngressClass>,
    services: Decoded<Service>,
    slices: Decoded<EndpointSlice>,
    secrets: Decoded<Secret>,
}

impl Objects {
    fn follow(&mut self, sources: &Sources) {
        self.ingresses.follow(&sources.ingresses.view());
        self.classes.follow(&sources.classes.view());
        self.services.follow(&sources.services.view());
        self.slices.follow(&sources.slices.view());
        self.secrets.follow(&sources.secrets.view());
    }

    fn observed<'a>(&'a self, settings: &'a Settings) -> Observed<'a> {
        Observed {
            settings,
            ingresses: self.ingresses.all(),
            classes: self.classes.all(),
            services: self.services.all(),
            slices: self.slices.all(),
            secrets: self.secrets.all(),
        }
    }
}

/// The objects of one kind, each decoded once for each of its versions.
struct Decoded<T>(BTreeMap<Key, (u64, Option<T>)>);

impl<T> Default for Decoded<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: DeserializeOwned> Decoded<T> {
    fn follow(&mut self, view: &View) {
        self.0.retain(|key, _| view.get(key).is_some());
        for object in view.iter() {
            if self.0.get(object.key()).is_none_or(|(revision, _)| *revision != object.revision) {
                self.0.insert(object.key().clone(), (object.revision, decoded(object)));
            }
        }
    }

    fn all(&self) -> Vec<&T> {
        self.0.values().filter_map(|(_, object)| object.as_ref()).collect()
    }
}

fn decoded<T: DeserializeOwned>(object: &Object) -> Option<T> {
    object.decode().inspect_err(|error| warn!(key = %object.key(), %error, "object is not understood")).ok()
}
