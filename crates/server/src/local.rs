//! The client's transport in process: the same authorization, admission and registry as over HTTP, without its bytes.
//!
//! Lists and watches return the store's own objects, so an informer holds no second copy.

use std::sync::Arc;

use api::key::Key;
use api::object::{Change, Draft, Object, SCHEMA};
use api::patch::{Format, Patch};
use api::status::Status;
use client::{BoxFuture, Call, Listing, PatchType, Scope, Transport, Verb};
use kinds::kind::Action;
use serde_json::Value;

use crate::admit::Warnings;
use crate::audit;
use crate::http::body::{self, FieldValidation};
use crate::http::write;
use crate::identity::{self, User};
use crate::path::{Attributes, Resource, selected_name};
use crate::registry::catalog::Served;
use crate::registry::delete::{Deleted, Options};
use crate::registry::metadata;
use crate::registry::select::Selection;
use crate::registry::update::{self, Updated};
use crate::registry::watch::{Event, Watch};
use crate::registry::{Place, Writer, scale};
use crate::server::Server;

/// Who asks, in the audit log.
const AGENT: &str = "coracle/in-process";

/// A user's requests to a server in this process.
pub struct Local {
    server: Arc<Server>,
    user: User,
}

impl Local {
    /// Requests to `server` as `user`.
    pub fn new(server: Arc<Server>, user: User) -> Self {
        Self { server, user }
    }

    fn authorize(&self, verb: &'static str, resource: &Resource) -> Result<(), Status> {
        let attributes = Attributes::resource(verb, resource.clone());
        identity::authorize(&*self.server.authorizer, &self.user, &attributes)
    }

    /// Performs a call, and has what it writes audited.
    async fn audited(&self, call: Call) -> Result<Arc<Object>, Status> {
        let sink = self.server.audit.clone().filter(|_| !matches!(call.verb, Verb::Get));
        let Some(sink) = sink else { return self.perform(call).await };
        let registry = &self.server.registry;
        let (received, id) = (registry.now(), metadata::uuid(&registry.rng));
        let attributes = Attributes::resource(verb(&call.verb), path(&call));
        let mut uri = client::request::path(&call.resource, call.version, &call.namespace, &call.name);
        if let Some(subresource) = call.subresource {
            uri = format!("{uri}/{subresource}");
        }
        let success = if matches!(call.verb, Verb::Create(_)) { 201 } else { 200 };
        let answer = self.perform(call).await;
        let event = audit::Event {
            id: &id,
            received,
            answered: registry.now(),
            user: &self.user,
            impersonated: None,
            attributes: &attributes,
            uri: &uri,
            source: std::net::Ipv4Addr::LOCALHOST.to_string(),
            agent: AGENT,
            code: answer.as_ref().map_or_else(|status| status.code, |_| success),
        };
        if event.is_kept() {
            sink.record(&event);
        }
        answer
    }

    async fn perform(&self, call: Call) -> Result<Arc<Object>, Status> {
        let group = call.resource.group.to_string();
        let catalog = &self.server.registry.catalog;
        let served = catalog
            .find(&group, call.version, &call.resource.resource)
            .ok_or_else(|| unknown(&group, call.version, &call.resource.resource))?
            .clone();
        let (path, verb) = (path(&call), verb(&call.verb));
        let mut asked = path.clone();
        if served.kind.names.resource.group.is_empty() && path.resource == "namespaces" {
            // As the path `/namespaces/NAME` has it.
            asked.namespace.clone_from(&path.name);
        }
        self.authorize(verb, &asked)?;
        let action = match call.subresource {
            None => None,
            Some(name) => match served.subresource(name) {
                Some(sub) => Some(sub),
                None => return Err(Status::no_such_resource()),
            },
        };
        let at = Place::new(&served, &path.namespace, &path.name);
        let warnings = Warnings::default();
        let manager = manager(&self.user.name);
        let refused = self.authorize("create", &asked).err();
        let create_refused = refused.as_ref();
        let by = Writer { user: &self.user, manager, create_refused, dry_run: false, warnings: &warnings };
        let answer = self.dispatch(at, call.verb, action, by).await?;
        let texts = warnings.take();
        if !texts.is_empty() {
            tracing::debug!(user = self.user.name, resource = path.resource, ?texts, "a request was warned about");
        }
        Ok(answer)
    }

    async fn dispatch(
        &self,
        at: Place<'_>,
        verb: Verb,
        sub: Option<&kinds::kind::Subresource>,
        by: Writer<'_>,
    ) -> Result<Arc<Object>, Status> {
        let registry = &self.server.registry;
        let served = at.served;
        let name = sub.map_or("", |sub| sub.name);
        let action = sub.map(|sub| &sub.action);
        match verb {
            Verb::Get => {
                let object = registry.get(at, 0).await?;
                match action {
                    Some(Action::Scale) => answer(at, scale::of(&registry.value(served, &object))),
                    _ => self.shown(served, object),
                }
            }
            Verb::Create(body) => match action {
                None => match served.kind.answered {
                    None => {
                        let body = self.fit(served, body, by)?;
                        self.shown(served, registry.create(served, at.namespace, body, by).await?)
                    }
                    Some(review) => {
                        let reply = registry.answer(served, at.namespace, review, body.clone(), by).await?;
                        answer(at, reply.unwrap_or(body))
                    }
                },
                Some(Action::Binding) => {
                    registry.bind(at, &body, by).await?;
                    answer(at, body)
                }
                Some(Action::Eviction) => {
                    registry.evict(at, &body, by).await?;
                    answer(at, body)
                }
                Some(Action::Token) => answer(at, registry.token(at, body, by).await?),
                Some(Action::Own(_) | Action::Scale | Action::Finalize | Action::Node | Action::Proxy) => {
                    Err(Status::method_not_allowed(&served.group_resource(), "create"))
                }
            },
            Verb::Update(body) => {
                let updated = match action {
                    Some(Action::Scale) => registry.update(at, name, update::Change::Replace(body), by).await?,
                    Some(Action::Finalize) => registry.finalize(at, &body, by).await?,
                    _ => {
                        let body = self.fit(served, body, by)?;
                        registry.update(at, name, update::Change::Replace(body), by).await?
                    }
                };
                self.updated(at, action, updated)
            }
            Verb::Patch(kind, patch) => {
                let format = match kind {
                    PatchType::Json => Format::Json,
                    PatchType::Merge => Format::Merge,
                    PatchType::Strategic => Format::Strategic,
                };
                let patch = Patch::parse(format, patch.to_string().as_bytes());
                let patch = patch.map_err(|error| write::patch_failure(&error))?;
                let edit = |object: &Value| {
                    let expected = match action {
                        Some(Action::Scale) => write::scale(),
                        _ => write::expected(served),
                    };
                    write::patched(&patch, object, expected, FieldValidation::Strict, by.warnings)
                };
                let updated = registry.update(at, name, update::Change::Edit(&edit), by).await?;
                self.updated(at, action, updated)
            }
            Verb::Delete(options) => {
                let options = Options {
                    grace_period_seconds: options.grace_period_seconds,
                    uid: options.uid,
                    resource_version: options.resource_version,
                    propagation: options.propagation,
                    dry_run: false,
                };
                let (Deleted::Gone(object) | Deleted::Pending(object)) = registry.delete(at, &options, by).await?;
                self.shown(served, object)
            }
        }
    }

    fn updated(&self, at: Place<'_>, action: Option<&Action>, updated: Updated) -> Result<Arc<Object>, Status> {
        match action {
            Some(Action::Scale) => answer(at, scale::of(&self.server.registry.value(at.served, &updated.object))),
            _ => self.shown(at.served, updated.object),
        }
    }

    /// Checks what a component of this process sends as strictly as what anyone sends.
    fn fit(&self, served: &Served, body: Value, by: Writer<'_>) -> Result<Value, Status> {
        let parsed = body::Parsed { value: body, text: body::Text::Unknown };
        body::conform(parsed, write::expected(served), FieldValidation::Strict, by.warnings)
    }

    /// The object in the version that was asked for; the store's own where that is the stored one.
    fn shown(&self, served: &Served, object: Arc<Object>) -> Result<Arc<Object>, Status> {
        if served.is_storage() && object.draft().schema == SCHEMA {
            return Ok(object);
        }
        let value = self.server.registry.shown(served, &object);
        let draft = Draft::new(object.key().clone(), value).map_err(Status::internal)?;
        Ok(draft.commit(object.revision))
    }
}

/// An answer that is no stored object, such as a review or a Scale.
fn answer(at: Place<'_>, mut value: Value) -> Result<Arc<Object>, Status> {
    let revision = value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    if !value["metadata"].is_object() {
        value["metadata"] = serde_json::json!({});
    }
    let key = Key::new(&at.served.kind.names.resource, at.namespace, at.name);
    Ok(Draft::new(key, value).map_err(Status::internal)?.commit(revision))
}

fn path(call: &Call) -> Resource {
    Resource {
        group: call.resource.group.to_string(),
        version: call.version.to_owned(),
        resource: call.resource.resource.to_string(),
        subresource: call.subresource.unwrap_or_default().to_owned(),
        namespace: call.namespace.clone(),
        name: call.name.clone(),
        ..Resource::default()
    }
}

fn verb(verb: &Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::Create(_) => "create",
        Verb::Update(_) => "update",
        Verb::Patch(..) => "patch",
        Verb::Delete(_) => "delete",
    }
}

/// What upstream's components call themselves, from the identities that they have here.
fn manager(user: &str) -> &'static str {
    match user {
        "system:kube-scheduler" => "kube-scheduler",
        "system:apiserver" => "kube-apiserver",
        user if user.starts_with("system:node:") => "kubelet",
        "system:kube-controller-manager" => "kube-controller-manager",
        user if user.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager",
        _ => "coracle",
    }
}

fn unknown(group: &str, version: &str, resource: &str) -> Status {
    let mut status = Status::no_such_resource();
    status.message = format!("{}: {group}/{version} {resource}", status.message);
    status
}

impl Transport for Local {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Arc<Object>, Status>> {
        Box::pin(self.audited(call))
    }

    fn list_watch(&self, scope: Scope) -> BoxFuture<'_, Result<(Listing, Box<dyn client::Watch>), Status>> {
        Box::pin(async move {
            let namespace = scope.namespace.unwrap_or_default();
            let path = Resource {
                group: scope.resource.group.to_string(),
                version: scope.version.to_owned(),
                resource: scope.resource.resource.to_string(),
                namespace: namespace.clone(),
                name: selected_name(&scope.field_selector).unwrap_or_default().to_owned(),
                field_selector: scope.field_selector,
                label_selector: scope.label_selector,
                ..Resource::default()
            };
            for verb in ["list", "watch"] {
                self.authorize(verb, &path)?;
            }
            let registry = &self.server.registry;
            let served = registry
                .catalog
                .find(&path.group, &path.version, &path.resource)
                .ok_or_else(|| unknown(&path.group, &path.version, &path.resource))?;
            if !served.is_storage() {
                return Err(Status::bad_request(format!(
                    "in-process watches are of the stored version: {}",
                    served.kind.versions[0].version
                )));
            }
            let namespace = if served.is_namespaced() { namespace } else { String::new() };
            let selection = Selection::parse(served, &namespace, &path.label_selector, &path.field_selector)?;
            let snapshot = registry.store.snapshot();
            let revision = snapshot.revision();
            let objects = registry.select(&snapshot, &selection, None).cloned().collect();
            let watch = registry.watch_after(selection, revision)?;
            let watch: Box<dyn client::Watch> = Box::new(LocalWatch(watch));
            Ok((Listing { revision, objects }, watch))
        })
    }
}

struct LocalWatch(Watch);

impl client::Watch for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, Status>> {
        Box::pin(async {
            let mut changes = Vec::new();
            let mut event = Some(self.0.next().await?);
            while let Some(next) = event {
                match next {
                    Event::Change(change) => changes.push(change),
                    Event::Bookmark(_) | Event::InitialEnd(_) => {}
                }
                event = self.0.ready();
            }
            Ok(changes)
        })
    }

    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn progress(&self) -> client::Progress {
        self.0.progress()
    }
}
