//! One request on its way: who asks, for what, and in which form the answer is wanted.
//!
//! Source: apiserver `pkg/endpoints/request`, `pkg/endpoints/handlers/negotiation`.

use std::sync::Arc;

use api::status::Status;
use http::Response;
use http::request::Parts;
use kinds::kind::{Subresource, Verb};

use super::negotiate::{self, Accepted, Form, Offer};
use super::reply::{self, Body};
use crate::admit::Warnings;
use crate::encode::Include;
use crate::identity::User;
use crate::path::{Query, Resource};
use crate::registry::Place;
use crate::registry::catalog::Served;
use crate::registry::list::Refused;
use crate::registry::select::Selection;
use crate::server::Server;

/// One request on its way.
pub(crate) struct Exchange<'a> {
    pub server: &'a Arc<Server>,
    pub parts: &'a Parts,
    pub query: &'a Query,
    pub user: &'a User,
    /// Who owns what the request writes, unless it says so itself.
    pub agent: String,
    pub warnings: &'a Warnings,
}

/// What a path leads to.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint<'a> {
    pub served: &'a Served,
    pub subresource: Option<&'a Subresource>,
    pub path: &'a Resource,
}

impl<'a> Endpoint<'a> {
    /// The object that the path names.
    pub fn place(&self) -> Place<'a> {
        Place::new(self.served, &self.path.namespace, &self.path.name)
    }
}

impl From<Refused> for Response<Body> {
    fn from(refused: Refused) -> Self {
        reply::failure(&refused.status, refused.fresh.as_deref())
    }
}

/// Why a handler ended early.
pub(crate) enum Stop {
    Refused(Status),
    Answered(Box<Response<Body>>),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Answered(Box::new(refused.into()))
    }
}

impl Exchange<'_> {
    pub(crate) fn allowed(&self, endpoint: Endpoint<'_>, verb: Verb, name: &str) -> Result<(), Status> {
        let allowed = match endpoint.subresource {
            None => endpoint.served.kind.verbs,
            Some(sub) => sub.verbs,
        };
        // One object of a namespaced kind is named within its namespace.
        let complete = !endpoint.path.namespace.is_empty()
            || matches!(verb, Verb::List | Verb::Watch)
            || !endpoint.served.is_namespaced();
        if allowed.contains(&verb) && complete { Ok(()) } else { Err(not_allowed(endpoint, name)) }
    }

    /// Of what the client accepts, what suits it best.
    pub(super) fn accepted(&self, offer: Offer) -> Result<Accepted, Status> {
        negotiate::negotiate(&self.parts.headers, self.query, offer)
    }

    pub(super) fn selection(&self, endpoint: Endpoint<'_>) -> Result<Selection, Status> {
        let path = endpoint.path;
        let mut fields = path.field_selector.clone();
        if !path.name.is_empty() && fields.is_empty() {
            // `/watch/…/NAME`.
            fields = format!("metadata.name={}", path.name);
        }
        let namespace = if endpoint.served.is_namespaced() { path.namespace.as_str() } else { "" };
        Selection::parse(endpoint.served, namespace, &path.label_selector, &fields)
    }

    pub(super) fn include(&self) -> Result<Include, Status> {
        match self.query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// The form of one object.
pub(crate) fn single(form: Form) -> Result<Form, Status> {
    match form {
        Form::MetadataList(_) => Err(Status::not_acceptable(
            "you requested PartialObjectMetadataList, but the requested object is not a list",
        )),
        form => Ok(form),
    }
}

pub(crate) fn not_allowed(endpoint: Endpoint<'_>, verb: &str) -> Status {
    let mut of = endpoint.served.group_resource();
    if let Some(sub) = endpoint.subresource {
        of.resource = format!("{}/{}", of.resource, sub.name).into();
    }
    Status::method_not_allowed(&of, verb)
}
