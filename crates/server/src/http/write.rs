//! The endpoints that change something: their bodies, options and answers.
//!
//! Source: apiserver `pkg/endpoints/handlers/{create,update,patch,delete}.go`.

use std::sync::Arc;

use api::json;
use api::object::Object;
use api::patch::{self, Patch};
use api::status::Status;
use api::validation;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use kinds::kind::{Action, Kind, Subresource, Verb};
use serde_json::{Value, json};

use super::body::{self, Expected, FieldValidation, Text, Unfit};
use super::exchange::{Endpoint, Exchange, Stop, not_allowed, single};
use super::negotiate::{self, Accepted, Form, Offer};
use super::reply::{self, Body};
use crate::admit::Warnings;
use crate::encode::{self, Include};
use crate::identity;
use crate::path::Attributes;
use crate::registry::actions::{deleted_status, success};
use crate::registry::catalog::Served;
use crate::registry::delete::{Deleted, Options};
use crate::registry::list::{Listed, When};
use crate::registry::ownership::Application;
use crate::registry::update::Change;
use crate::registry::{Writer, scale};

/// Kinds whose deletion is answered with the object even when it is gone, and not with a Status.
const ANSWERED_WITH_OBJECT: [&str; 5] = ["Pod", "PodTemplate", "Service", "ServiceAccount", "Namespace"];

/// Upstream asks access reviews for their kind after decoding has emptied it: their errors name none.
///
/// Source: kubernetes `pkg/registry/authorization/subjectaccessreview/rest.go`.
fn nameless_kind(served: &Served, mut status: Status) -> Status {
    if served.version().group == "authorization.k8s.io"
        && let Some(details) = &mut status.details
        && let Some(rest) = status.message.strip_prefix(served.kind_name())
    {
        status.message = rest.to_owned();
        details.kind.clear();
    }
    status
}

impl Exchange<'_> {
    pub(super) async fn create(&self, endpoint: Endpoint<'_>, body: Incoming) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Create, "create")?;
        let (served, path) = (endpoint.served, endpoint.path);
        if !path.name.is_empty() {
            return Err(not_allowed(endpoint, "create").into());
        }
        let accepted = self.accepted(if served.kind.answered.is_some() { Offer::Metadata } else { Offer::Tables })?;
        let validation = FieldValidation::parse(self.query, "CreateOptions")?;
        let by = self.writer("CreateOptions")?;
        let object = self.object(body, expected(served), validation).await?;
        let registry = &self.server.registry;
        if let Some(answer) = served.kind.answered {
            let answer = registry.answer(served, &path.namespace, answer, object, by).await;
            let answer = answer.map_err(|status| nameless_kind(served, status))?;
            return answer_value(accepted, answer.unwrap_or_else(|| success(201)));
        }
        let object = registry.create(served, &path.namespace, object, by).await?;
        self.answer_object(endpoint, StatusCode::CREATED, accepted, &object)
    }

    /// A create of a sub-resource does something to its object.
    pub(super) async fn act(
        &self,
        endpoint: Endpoint<'_>,
        sub: &Subresource,
        body: Incoming,
    ) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Create, "create")?;
        let accepted = self.accepted(Offer::Metadata)?;
        let validation = FieldValidation::parse(self.query, "CreateOptions")?;
        let by = self.writer("CreateOptions")?;
        let (at, registry) = (endpoint.place(), &self.server.registry);
        let (api_version, schema) = body_type(endpoint.served, sub);
        let kind = sub.body.map_or(endpoint.served.kind_name(), |(_, _, kind)| kind);
        let expected = Expected { api_version: api_version.into(), kind, schema };
        let body = self.object(body, expected, validation).await?;
        let answer = match sub.action {
            Action::Binding => {
                registry.bind(at, &body, by).await?;
                success(201)
            }
            Action::Eviction => {
                registry.evict(at, &body, by).await?;
                success(201)
            }
            Action::Token => registry.token(at, body, by).await?,
            Action::Own(_) | Action::Scale | Action::Finalize | Action::Node | Action::Proxy => {
                return Err(not_allowed(endpoint, "create").into());
            }
        };
        answer_value(accepted, answer)
    }

    /// PUT and PATCH, of an object or of a sub-resource.
    pub(super) async fn write(
        &self,
        endpoint: Endpoint<'_>,
        verb: &str,
        body: Incoming,
    ) -> Result<Response<Body>, Stop> {
        let patch = verb == "patch";
        if endpoint.path.name.is_empty() {
            return Err(not_allowed(endpoint, verb).into());
        }
        self.allowed(endpoint, if patch { Verb::Patch } else { Verb::Update }, verb)?;
        let accepted = self.accepted(Offer::Tables)?;
        let options = if patch { "PatchOptions" } else { "UpdateOptions" };
        let validation = FieldValidation::parse(self.query, options)?;
        let by = self.writer(options)?;
        let (at, registry, served) = (endpoint.place(), &self.server.registry, endpoint.served);
        let scaling = endpoint.subresource.is_some_and(|sub| matches!(sub.action, Action::Scale));
        let name = endpoint.subresource.map_or("", |sub| sub.name);
        let expected = || if scaling { scale() } else { expected(served) };
        let refused = self.may_create(endpoint).err();
        let by = Writer { create_refused: refused.as_ref(), ..by };
        let updated = if patch && self.applies() {
            let application = self.application(body, validation).await?;
            registry.update(at, name, Change::Apply(&application), by).await?
        } else if patch {
            let patch = self.patch(body).await?;
            let edit = |object: &Value| patched(&patch, object, expected(), validation, self.warnings);
            registry.update(at, name, Change::Edit(&edit), by).await?
        } else {
            let object = self.object(body, expected(), validation).await?;
            match endpoint.subresource.map(|sub| &sub.action) {
                Some(Action::Finalize) => registry.finalize(at, &object, by).await?,
                _ => registry.update(at, name, Change::Replace(object), by).await?,
            }
        };
        let code = if updated.created { StatusCode::CREATED } else { StatusCode::OK };
        if scaling {
            return self.answer_scale(endpoint, code, (accepted, self.include()?), &updated.object);
        }
        self.answer_object(endpoint, code, accepted, &updated.object)
    }

    pub(super) async fn delete(&self, endpoint: Endpoint<'_>, body: Incoming) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::Delete, "delete")?;
        let accepted = self.accepted(Offer::Tables)?;
        let options = self.delete_options(body).await?;
        let by = Writer { dry_run: options.dry_run, ..self.connecting() };
        let deleted = self.server.registry.delete(endpoint.place(), &options, by).await?;
        let kind = &endpoint.served.kind;
        match &deleted {
            Deleted::Gone(object) if !answers_with_object(kind) => {
                let status = deleted_status(endpoint.served, object);
                Ok(reply::value(StatusCode::OK, accepted.format, &status))
            }
            Deleted::Gone(object) | Deleted::Pending(object) => {
                self.answer_object(endpoint, StatusCode::OK, accepted, object)
            }
        }
    }

    pub(super) async fn delete_collection(
        &self,
        endpoint: Endpoint<'_>,
        body: Incoming,
    ) -> Result<Response<Body>, Stop> {
        self.allowed(endpoint, Verb::DeleteCollection, "deletecollection")?;
        let accepted = self.accepted(Offer::Tables)?;
        When::parse(self.query, false)?;
        let selection = self.selection(endpoint)?;
        let options = self.delete_options(body).await?;
        let by = Writer { dry_run: options.dry_run, ..self.connecting() };
        let registry = &self.server.registry;
        let (revision, objects) = registry.delete_collection(&selection, &options, by).await?;
        let listed = Listed { revision, objects, next: None, remaining: None };
        let bytes = registry.list_json(endpoint.served, &listed, accepted.form, Include::default());
        Ok(reply::large(&self.parts.headers, accepted.format, bytes))
    }

    fn answer_object(
        &self,
        endpoint: Endpoint<'_>,
        code: StatusCode,
        accepted: Accepted,
        object: &Arc<Object>,
    ) -> Result<Response<Body>, Stop> {
        let form: Form = single(accepted.form)?;
        let bytes = self.server.registry.object_json(endpoint.served, object, form, self.include()?);
        Ok(reply::json(code, accepted.format, bytes))
    }

    pub(super) fn answer_scale(
        &self,
        endpoint: Endpoint<'_>,
        code: StatusCode,
        (accepted, include): (Accepted, Include),
        object: &Object,
    ) -> Result<Response<Body>, Stop> {
        let registry = &self.server.registry;
        let scale = scale::of(&registry.value(endpoint.served, object));
        let answer = match single(accepted.form)? {
            Form::Whole | Form::MetadataList(_) => scale,
            Form::Metadata(version) => encode::partial(&scale, version),
            Form::Table(version) => encode::table_of_scale(scale, version, include, registry.now()),
        };
        Ok(reply::value(code, accepted.format, &answer))
    }

    /// Of requests that write nothing themselves.
    pub(crate) fn connecting(&self) -> Writer<'_> {
        Writer { user: self.user, manager: &self.agent, create_refused: None, dry_run: false, warnings: self.warnings }
    }

    fn writer(&self, options: &str) -> Result<Writer<'_>, Status> {
        let mut dry_run = false;
        let manager = self.query.get("fieldManager").unwrap_or_default();
        let path = api::field::Path::new("fieldManager");
        let mut errors = Vec::new();
        if options == "PatchOptions" && self.applies() && manager.is_empty() {
            errors.push(api::field::Error::required(&path, "is required for apply patch"));
        }
        if options == "PatchOptions" && !self.applies() && self.query.get("force").is_some() {
            let force = api::field::Path::new("force");
            errors.push(api::field::Error::forbidden(&force, "may not be specified for non-apply patch"));
        }
        errors.extend(validation::validate_field_manager(manager, &path));
        for value in self.query.all("dryRun").filter(|value| !value.is_empty()) {
            if value == "All" {
                dry_run = true;
            } else {
                errors.push(api::field::Error::not_supported(&api::field::Path::new("dryRun"), value, &["All"]));
            }
        }
        if errors.is_empty() {
            let manager = if manager.is_empty() { &self.agent } else { manager };
            Ok(Writer { manager, dry_run, ..self.connecting() })
        } else {
            Err(Status::invalid("meta.k8s.io", options, "", &errors))
        }
    }

    async fn object(
        &self,
        body: Incoming,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let media_type = negotiate::content_type(&self.parts.headers);
        let bytes = body::read(body).await?;
        body::conform(body::parse(&media_type, &bytes, expected.schema)?, expected, validation, self.warnings)
    }

    async fn patch(&self, body: Incoming) -> Result<Patch, Status> {
        let media_type = negotiate::content_type(&self.parts.headers);
        let Some(format) = patch::Format::of_media_type(&media_type) else {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
            ));
        };
        Patch::parse(format, &body::read(body).await?).map_err(|error| patch_failure(&error))
    }

    /// Whether the request is to apply a configuration.
    fn applies(&self) -> bool {
        negotiate::content_type(&self.parts.headers) == "application/apply-patch+yaml"
    }

    async fn application(&self, body: Incoming, validation: FieldValidation) -> Result<Application, Status> {
        let bytes = body::read(body).await?;
        let bad = |why: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {why}"));
        // JSON is YAML, but its texts have escapes of their own.
        let (config, repeated) = match json::parse(&bytes) {
            Ok(parsed) if !parsed.repeats => (parsed.value, Vec::new()),
            _ => {
                let text = std::str::from_utf8(&bytes).map_err(|error| bad(&error))?;
                let failed = |error| bad(&format!("error converting YAML to JSON: yaml: {error}"));
                api::yaml::parse_lenient(text).map_err(failed)?
            }
        };
        let config = match config {
            Value::Null => json!({}),
            config @ Value::Object(_) => config,
            other => return Err(bad(&patch::not_a("map[string]interface {}", &other))),
        };
        let mut strict = None;
        if !repeated.is_empty() {
            let why = format!("error converting YAML to JSON: yaml: unmarshal errors:\n  {}", repeated.join("\n  "));
            match validation {
                FieldValidation::Ignore => {}
                FieldValidation::Warn => self.warnings.add(why),
                FieldValidation::Strict => {
                    strict = Some(Status::bad_request(format!("error strict decoding patch: {why}")));
                }
            }
        }
        Ok(Application { config, force: self.query.flag("force"), strict })
    }

    /// Whether the user may create the object that an update or an apply finds absent.
    fn may_create(&self, endpoint: Endpoint<'_>) -> Result<(), Status> {
        identity::authorize(&*self.server.authorizer, self.user, &Attributes::resource("create", endpoint.path.clone()))
    }

    /// DeleteOptions from the body or, without one, from the query.
    async fn delete_options(&self, body: Incoming) -> Result<Options, Status> {
        let bytes = body::read(body).await?;
        if !bytes.is_empty() {
            let of = kinds::schema::get("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
            let parsed = body::parse(&negotiate::content_type(&self.parts.headers), &bytes, of)?;
            return Options::parse(&parsed.value);
        }
        let mut options = json!({});
        if let Some(text) = self.query.get("gracePeriodSeconds").filter(|text| !text.is_empty()) {
            let seconds: i64 = text.parse().map_err(|_| {
                Status::bad_request(format!("invalid gracePeriodSeconds {text:?}: it must be a whole number"))
            })?;
            options["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = self.query.get("propagationPolicy") {
            options["propagationPolicy"] = policy.into();
        }
        if self.query.get("orphanDependents").is_some() {
            options["orphanDependents"] = self.query.flag("orphanDependents").into();
        }
        let dry_run: Vec<&str> = self.query.all("dryRun").filter(|value| !value.is_empty()).collect();
        if !dry_run.is_empty() {
            options["dryRun"] = json!(dry_run);
        }
        Options::parse(&options)
    }
}

/// The type of every `scale` sub-resource.
pub(crate) fn scale() -> Expected<'static> {
    Expected { api_version: scale::VERSION.into(), kind: "Scale", schema: scale::schema() }
}

/// The type of a kind's own endpoint.
pub(crate) fn expected(served: &Served) -> Expected<'_> {
    Expected {
        api_version: served.api_version().into(),
        kind: served.kind_name(),
        schema: kinds::schema::get(&served.version().schema),
    }
}

/// The apiVersion and schema of a sub-resource's body.
pub(crate) fn body_type(served: &Served, sub: &Subresource) -> (String, Option<api::schema::Type<'static>>) {
    let Some((group, version, kind)) = sub.body else {
        return (served.api_version(), kinds::schema::get(&served.version().schema));
    };
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let package = group.split('.').next().filter(|first| !first.is_empty()).unwrap_or("core");
    (name, kinds::schema::get(&format!("io.k8s.api.{package}.{version}.{kind}")))
}

/// Applies a patch, and checks what came of it as a body would be.
pub(crate) fn patched(
    patch: &Patch,
    object: &Value,
    expected: Expected<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let mut patched = patch.apply(object.clone(), expected.schema).map_err(|error| patch_failure(&error))?;
    for field in ["apiVersion", "kind"] {
        if patched[field] != object[field] {
            return Err(Status::bad_request(format!(
                "{field} cannot be changed by a patch: it is {}, the patch makes it {}",
                object[field], patched[field]
            )));
        }
    }
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name(&patched) != name(object) {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            name(&patched),
            name(object)
        )));
    }
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => patch.strict().iter().for_each(|text| warnings.add(text.clone())),
        FieldValidation::Strict if patch.strict().is_empty() => {}
        FieldValidation::Strict => {
            let why = format!("strict decoding error: {}", patch.strict().join(", "));
            let error = api::field::Error::invalid(&api::field::Path::new("patch"), patched.to_string(), why);
            return Err(Status::invalid("", "", "", &[error]));
        }
    }
    body::strict(&mut patched, expected.schema, &Text::Unknown, validation, warnings).map_err(|Unfit(why)| {
        let error = api::field::Error::invalid(&api::field::Path::new("patch"), patched.to_string(), why);
        Status::invalid("", "", "", &[error])
    })?;
    Ok(patched)
}

/// A patch's error as upstream answers it.
pub(crate) fn patch_failure(error: &patch::Error) -> Status {
    match error {
        patch::Error::BadRequest(why) => Status::bad_request(why),
        patch::Error::TooLarge(why) => Status::too_large(why),
        patch::Error::NoSchema => Status::unsupported_media_type(error),
        patch::Error::Unprocessable(why) => Status::unprocessable(why),
    }
}

/// What a create comes to that stores nothing.
fn answer_value(accepted: Accepted, answer: Value) -> Result<Response<Body>, Stop> {
    let answer = if answer["kind"] == "Status" {
        answer
    } else {
        match single(accepted.form)? {
            Form::Metadata(version) => encode::partial(&answer, version),
            Form::Whole | Form::MetadataList(_) | Form::Table(_) => answer,
        }
    };
    Ok(reply::value(StatusCode::CREATED, accepted.format, &answer))
}

fn answers_with_object(kind: &Kind) -> bool {
    ANSWERED_WITH_OBJECT.contains(&&*kind.names.kind)
}
