//! Sub-resources that do one thing to their object: binding, eviction, finalize, token; and kinds that are only answered.
//!
//! Source: kubernetes `pkg/registry/core/pod/storage/{storage,eviction}.go`,
//! `pkg/registry/core/namespace/storage/storage.go`, `pkg/registry/core/serviceaccount/storage/token.go`.

use std::sync::Arc;

use api::field;
use api::key::GroupResource;
use api::object::Object;
use api::status::Status;
use kinds::kind::Answer;
use serde_json::{Value, json};

use super::catalog::Served;
use super::delete::Options;
use super::update::{Change, Edit, Updated};
use super::{Place, Registry, Writer, metadata};
use crate::admit::Operation;
use crate::authn::token::DEFAULT_SECONDS;
use crate::hooks::{Question, TokenAsk};

impl Registry {
    /// Assigns a pod to the node that a Binding names, once.
    ///
    /// # Errors
    /// 409 when it is assigned already or being deleted, 400 and 422 for a Binding that is none.
    pub async fn bind(&self, at: Place<'_>, binding: &Value, by: Writer<'_>) -> Result<(), Status> {
        let name = metadata::text(binding, "name");
        if name != at.name {
            return Err(Status::bad_request("name in URL does not match name in Binding object"));
        }
        let target = &binding["target"];
        let path = field::Path::new("target");
        let mut errors = Vec::new();
        if !matches!(target["kind"].as_str(), None | Some("" | "Node")) {
            errors.push(field::Error::not_supported(&path.child("kind"), target["kind"].clone(), &["Node", "<empty>"]));
        }
        let node = target["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            errors.push(field::Error::required(&path.child("name"), ""));
        } else if errors.is_empty() {
            let why = api::names::is_dns1123_subdomain(node);
            errors.extend(why.into_iter().map(|why| field::Error::invalid(&path.child("name"), node, why)));
        }
        if !errors.is_empty() {
            // Upstream returns what is wrong as it is, which clients see as a failure of the server.
            return Err(Status::unclassified(field::aggregate(&errors)));
        }
        let snapshot = self.store.snapshot();
        let attributes = self.attributes(Operation::Create, at, "binding", None, &snapshot, by);
        self.admission.validate(&attributes, Some(binding)).await?;
        let now = metadata::rfc3339(self.now());
        let refused = |why: String| Status::conflict(&GroupResource::new("", "pods/binding"), at.name, why);
        let assign = |pod: &Value| {
            let name = at.name;
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                return Err(refused(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if let Some(taken) = pod["spec"]["nodeName"].as_str().filter(|taken| !taken.is_empty()) {
                return Err(refused(format!("pod {name} is already assigned to node {taken:?}")));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(refused(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut pod = pod.clone();
            pod["spec"]["nodeName"] = node.into();
            for kept in ["annotations", "labels"] {
                for (key, value) in binding["metadata"][kept].as_object().into_iter().flatten() {
                    pod["metadata"][kept][key] = value.clone();
                }
            }
            if let Some(status) = pod["status"].as_object_mut() {
                status.remove("nominatedNodeName");
            }
            set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now}));
            preconditions(&mut pod, binding);
            Ok(pod)
        };
        self.edit_whole(at, "binding", &assign, by).await?;
        Ok(())
    }

    /// Deletes a pod as an Eviction asks.
    ///
    /// # Errors
    /// As for a deletion.
    pub async fn evict(&self, at: Place<'_>, eviction: &Value, by: Writer<'_>) -> Result<(), Status> {
        if metadata::text(eviction, "name") != at.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = &eviction["deleteOptions"];
        let dry_run: Vec<&str> = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if by.dry_run && !dry_run.is_empty() && dry_run != ["All"] {
            return Err(Status::unclassified(format!(
                "Non-matching dry-run options in request and content: [All] and [{}]",
                dry_run.join(" ")
            )));
        }
        let options = Options::parse(options)?;
        let by = Writer { dry_run: by.dry_run || options.dry_run, ..by };
        let pod = at.find(&self.store.snapshot())?.value();
        let snapshot = self.store.snapshot();
        let attributes = self.attributes(Operation::Create, at, "eviction", None, &snapshot, by);
        self.admission.validate(&attributes, Some(eviction)).await?;
        let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if !over && pod["metadata"]["deletionTimestamp"].is_null() {
            let now = metadata::rfc3339(self.now());
            let mark = |pod: &Value| {
                let mut pod = pod.clone();
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting", "lastTransitionTime": now,
                });
                set_condition(&mut pod, condition);
                Ok(pod)
            };
            self.edit_whole(at, "eviction", &mark, by).await?;
        }
        self.delete(at, &options, by).await?;
        Ok(())
    }

    /// Replaces a namespace's `spec.finalizers`; the last one to go removes a namespace that is being deleted.
    ///
    /// # Errors
    /// As for an update.
    pub async fn finalize(&self, at: Place<'_>, wanted: &Value, by: Writer<'_>) -> Result<Updated, Status> {
        if metadata::text(wanted, "name") != at.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                metadata::text(wanted, "name"),
                at.name
            )));
        }
        let replace = |object: &Value| {
            let mut object = object.clone();
            preconditions(&mut object, wanted);
            match wanted["spec"].get("finalizers").filter(|list| list.as_array().is_some_and(|l| !l.is_empty())) {
                Some(list) => object["spec"]["finalizers"] = list.clone(),
                None => drop(object["spec"].as_object_mut().and_then(|spec| spec.remove("finalizers"))),
            }
            Ok(object)
        };
        self.update(at, "finalize", Change::Edit(&replace), by).await
    }

    /// Issues a token for a service account.
    ///
    /// # Errors
    /// 404 when there is no such account, and what the issuer refuses.
    pub async fn token(&self, at: Place<'_>, mut request: Value, by: Writer<'_>) -> Result<Value, Status> {
        let snapshot = self.store.snapshot();
        let service_account = at.find(&snapshot)?;
        if request["spec"]["expirationSeconds"].is_null() {
            request["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
        }
        self.note_body(at, "token", None, &mut request, by);
        let attributes = self.attributes(Operation::Create, at, "token", None, &snapshot, by);
        self.admission.validate(&attributes, Some(&request)).await?;
        self.tokens.issue(TokenAsk { service_account, user: by.user, snapshot: &snapshot, request }).await
    }

    /// Answers a kind that is never stored.
    ///
    /// # Errors
    /// 400 and 422 for questions that make no sense.
    pub async fn answer(
        &self,
        served: &Served,
        namespace: &str,
        answer: Answer,
        mut object: Value,
        by: Writer<'_>,
    ) -> Result<Option<Value>, Status> {
        metadata::wipe(&mut object);
        if served.is_namespaced() {
            metadata::put_in_namespace(&mut object, namespace)?;
        }
        if answer == Answer::Binding {
            let name = metadata::text(&object, "name").to_owned();
            let pods = self.catalog.find("", "v1", "pods").ok_or_else(Status::no_such_resource)?;
            self.bind(Place { served: pods, namespace, name: &name }, &object, by).await?;
            return Ok(None);
        }
        (served.kind.strategy.default)(&mut object);
        let at = Place { served, namespace, name: "" };
        self.note(at, "", None, &mut object, by);
        let errors = (served.kind.strategy.validate)(&object, None);
        if !errors.is_empty() {
            return Err(at.invalid(&errors));
        }
        let snapshot = self.store.snapshot();
        let resource = served.group_resource();
        let question = Question { resource: &resource, namespace, user: by.user, snapshot: &snapshot, object };
        let mut answered = self.reviewer.review(question).await?;
        if answer == Answer::SelfSubjectReview {
            answered["metadata"]["creationTimestamp"] = metadata::rfc3339(self.now()).into();
        }
        Ok(Some(answered))
    }

    /// Changes an object past its strategy, as an action of the server itself does.
    async fn edit_whole(
        &self,
        at: Place<'_>,
        subresource: &str,
        edit: &Edit<'_>,
        by: Writer<'_>,
    ) -> Result<Updated, Status> {
        self.update(at, subresource, Change::Act(edit), by).await
    }
}

/// Carries the uid and revision that a request names over to the object it changes, where the update checks them.
fn preconditions(object: &mut Value, request: &Value) {
    let metadata = metadata::of(object);
    metadata.remove("resourceVersion");
    for field in ["uid", "resourceVersion"] {
        if let Some(value) =
            request["metadata"].get(field).filter(|value| value.as_str().is_some_and(|t| !t.is_empty()))
        {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
}

/// Sets a condition of the object's status; the time of its last transition stays when its status does.
fn set_condition(object: &mut Value, mut condition: Value) {
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let list = list.as_array_mut().expect("it was just made a list");
    match list.iter_mut().find(|own| own["type"] == condition["type"]) {
        Some(own) => {
            if own["status"] == condition["status"] {
                condition["lastTransitionTime"] = own["lastTransitionTime"].clone();
            }
            *own = condition;
        }
        None => list.push(condition),
    }
}

/// The answer of actions that return no object.
pub fn success(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": code})
}

/// The answer of a deletion: the object of kinds that return it, otherwise a Status that names it.
pub fn deleted_status(served: &Served, object: &Arc<Object>) -> Value {
    let group = &served.version().group;
    let mut details = json!({
        "name": object.key().name(),
        "kind": served.kind.names.resource.resource,
        "uid": object.meta().uid,
    });
    if !group.is_empty() {
        details["group"] = (**group).into();
    }
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "details": details})
}
