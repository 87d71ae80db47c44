//! API errors: the `Status` object that every failed request answers with.
//!
//! Source: apimachinery `pkg/api/errors/errors.go`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::field;
use crate::key::GroupResource;

/// A failed request. Serialises as `v1.Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    #[serde(rename = "apiVersion", default)]
    api_version: V1,
    #[serde(default)]
    kind: StatusKind,
    #[serde(default)]
    metadata: Empty,
    #[serde(default)]
    status: Failure,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub reason: Reason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// The HTTP status code.
    #[serde(default)]
    pub code: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum V1 {
    #[default]
    #[serde(rename = "v1")]
    V1,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum StatusKind {
    #[default]
    Status,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Empty {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Failure {
    #[default]
    Failure,
}

/// The machine-readable cause. The default is the empty reason, which upstream calls unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    #[default]
    #[serde(rename = "", other)]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource, or for `Invalid` the kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

impl Status {
    fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            api_version: V1::V1,
            kind: StatusKind::Status,
            metadata: Empty {},
            status: Failure::Failure,
            message: message.into(),
            reason,
            details: None,
            code,
        }
    }

    fn about(mut self, of: &GroupResource, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: of.group.to_string(),
            kind: of.resource.to_string(),
            ..Details::default()
        }));
        self
    }

    pub fn not_found(of: &GroupResource, name: &str) -> Self {
        Self::new(404, Reason::NotFound, format!("{of} {name:?} not found")).about(of, name)
    }

    /// The path names no resource that this server knows.
    pub fn no_such_resource() -> Self {
        let mut status = Self::new(404, Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(of: &GroupResource, name: &str) -> Self {
        Self::new(409, Reason::AlreadyExists, format!("{of} {name:?} already exists")).about(of, name)
    }

    pub fn conflict(of: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {of} {name:?}: {why}");
        Self::new(409, Reason::Conflict, message).about(of, name)
    }

    pub fn forbidden(of: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = if of.resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{of} is forbidden: {why}")
        } else {
            format!("{of} {name:?} is forbidden: {why}")
        };
        Self::new(403, Reason::Forbidden, message).about(of, name)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// Every field error at once. `kind` is the object's kind, not its resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let of = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let shown = match errors {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let mut status = Self::new(422, Reason::Invalid, format!("{of} {name:?} is invalid: {shown}"));
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.field.to_string() })
            .collect();
        status.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        }));
        status
    }

    pub fn bad_request(why: impl fmt::Display) -> Self {
        Self::new(400, Reason::BadRequest, why.to_string())
    }

    /// A watch or list asked for a revision that has been compacted away.
    pub fn expired(why: impl fmt::Display) -> Self {
        Self::new(410, Reason::Expired, why.to_string())
    }

    pub fn method_not_allowed(of: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {:?}", of.to_string());
        Self::new(405, Reason::MethodNotAllowed, message).about(of, "")
    }

    pub fn not_acceptable(why: impl fmt::Display) -> Self {
        Self::new(406, Reason::NotAcceptable, why.to_string())
    }

    pub fn unsupported_media_type(why: impl fmt::Display) -> Self {
        Self::new(415, Reason::UnsupportedMediaType, why.to_string())
    }

    pub fn too_large(why: impl fmt::Display) -> Self {
        Self::new(413, Reason::RequestEntityTooLarge, why.to_string())
    }

    pub fn too_many_requests(why: impl fmt::Display, retry_after_seconds: i32) -> Self {
        let mut status = Self::new(429, Reason::TooManyRequests, why.to_string());
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    pub fn timeout(why: impl fmt::Display) -> Self {
        Self::new(504, Reason::Timeout, why.to_string())
    }

    pub fn unavailable(why: impl fmt::Display) -> Self {
        Self::new(503, Reason::ServiceUnavailable, why.to_string())
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {why}"))
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
