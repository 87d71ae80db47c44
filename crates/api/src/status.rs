//! API errors: the `Status` object that every failed request answers with.
//!
//! Source: apimachinery `pkg/api/errors/errors.go`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::field::{self, quoted};
use crate::key::GroupResource;

/// A failed request. Serialises as `v1.Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    #[serde(default)]
    kind: StatusKind,
    #[serde(rename = "apiVersion", default)]
    api_version: V1,
    #[serde(default)]
    metadata: Empty,
    #[serde(default)]
    status: Failure,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Reason::is_unknown")]
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

impl Reason {
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
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
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
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
            kind: StatusKind::Status,
            api_version: V1::V1,
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

    fn detailed(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub fn not_found(of: &GroupResource, name: &str) -> Self {
        Self::new(404, Reason::NotFound, format!("{of} {} not found", quoted(name))).about(of, name)
    }

    /// The path names no resource that this server knows.
    pub fn no_such_resource() -> Self {
        Self::new(404, Reason::NotFound, "the server could not find the requested resource")
            .detailed(Details::default())
    }

    pub fn already_exists(of: &GroupResource, name: &str) -> Self {
        Self::new(409, Reason::AlreadyExists, format!("{of} {} already exists", quoted(name))).about(of, name)
    }

    /// Every name that was generated for the object was taken. The client may try again.
    pub fn generate_name_conflict(of: &GroupResource, name: &str) -> Self {
        let why = "the server was not able to generate a unique name for the object";
        let mut status = Self::new(409, Reason::AlreadyExists, format!("{of} {} already exists, {why}", quoted(name)))
            .about(of, name);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = 1;
        }
        status
    }

    pub fn conflict(of: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {of} {}: {why}", quoted(name));
        Self::new(409, Reason::Conflict, message).about(of, name)
    }

    /// Others own the fields that applying a configuration would change.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, Reason::Conflict, message).detailed(Details { causes, ..Details::default() })
    }

    /// A failure that upstream answers with its bare text.
    pub fn unclassified(why: impl fmt::Display) -> Self {
        Self::new(500, Reason::Unknown, why.to_string())
    }

    pub fn forbidden(of: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = if of.resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{of} is forbidden: {why}")
        } else {
            format!("{of} {} is forbidden: {why}", quoted(name))
        };
        Self::new(403, Reason::Forbidden, message).about(of, name)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// Every field error at once. `kind` is the object's kind, not its resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let of = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let name_shown = quoted(name);
        let message = match errors {
            [] => format!("{of} {name_shown} is invalid"),
            errors => format!("{of} {name_shown} is invalid: {}", field::aggregate(errors)),
        };
        let mut status = Self::new(422, Reason::Invalid, message);
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

    /// The request is well formed but does not fit its object, such as a JSON patch whose test fails.
    pub fn unprocessable(why: impl fmt::Display) -> Self {
        let message = format!("the server rejected our request due to an error in our request: {why}");
        Self::new(422, Reason::Invalid, message).detailed(Details::default())
    }

    pub fn bad_request(why: impl fmt::Display) -> Self {
        Self::new(400, Reason::BadRequest, why.to_string())
    }

    /// A watch or list asked for a revision that has been compacted away.
    pub fn expired(why: impl fmt::Display) -> Self {
        Self::new(410, Reason::Expired, why.to_string())
    }

    pub fn method_not_allowed(of: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quoted(&of.to_string()));
        Self::new(405, Reason::MethodNotAllowed, message).about(of, "")
    }

    pub fn not_acceptable(why: impl fmt::Display) -> Self {
        Self::new(406, Reason::NotAcceptable, why.to_string())
    }

    pub fn unsupported_media_type(why: impl fmt::Display) -> Self {
        Self::new(415, Reason::UnsupportedMediaType, why.to_string())
    }

    pub fn too_large(why: impl fmt::Display) -> Self {
        Self::new(413, Reason::RequestEntityTooLarge, format!("Request entity too large: {why}"))
    }

    pub fn too_many_requests(why: impl fmt::Display, retry_after_seconds: i32) -> Self {
        Self::new(429, Reason::TooManyRequests, why.to_string())
            .detailed(Details { retry_after_seconds, ..Details::default() })
    }

    pub fn timeout(why: impl fmt::Display) -> Self {
        Self::new(504, Reason::Timeout, format!("Timeout: {why}")).detailed(Details::default())
    }

    /// The operation may succeed when it is tried again.
    pub fn server_timeout(of: &GroupResource, operation: &str, retry_after_seconds: i32) -> Self {
        let message =
            format!("The {operation} operation against {of} could not be completed at this time, please try again.");
        let mut status = Self::new(500, Reason::ServerTimeout, message).about(of, operation);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = retry_after_seconds;
        }
        status
    }

    pub fn unavailable(why: impl fmt::Display) -> Self {
        Self::new(503, Reason::ServiceUnavailable, why.to_string())
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        let cause = Cause { message: why.to_string(), ..Cause::default() };
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {why}"))
            .detailed(Details { causes: vec![cause], ..Details::default() })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::field::{Error, Path};

    const PODS: GroupResource = GroupResource::new("", "pods");
    const DEPLOYMENTS: GroupResource = GroupResource::new("apps", "deployments");

    fn check(status: &Status, expected: serde_json::Value) {
        let mut whole = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"});
        whole.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
        let written = serde_json::to_value(status).unwrap();
        assert_eq!(written, whole);
        assert_eq!(serde_json::from_value::<Status>(written).unwrap(), *status);
    }

    #[test]
    fn about_one_object() {
        check(
            &Status::not_found(&PODS, "a"),
            json!({
                "message": "pods \"a\" not found", "reason": "NotFound", "code": 404,
                "details": {"name": "a", "kind": "pods"},
            }),
        );
        let details = json!({"name": "a", "group": "apps", "kind": "deployments"});
        check(
            &Status::already_exists(&DEPLOYMENTS, "a"),
            json!({
                "message": "deployments.apps \"a\" already exists", "reason": "AlreadyExists", "code": 409,
                "details": details,
            }),
        );
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        check(
            &Status::conflict(&DEPLOYMENTS, "a", why),
            json!({
                "message": format!("Operation cannot be fulfilled on deployments.apps \"a\": {why}"),
                "reason": "Conflict", "code": 409, "details": details,
            }),
        );
        check(
            &Status::forbidden(&PODS, "", "User \"u\" cannot list resource"),
            json!({
                "message": "pods is forbidden: User \"u\" cannot list resource", "reason": "Forbidden", "code": 403,
                "details": {"kind": "pods"},
            }),
        );
        check(
            &Status::method_not_allowed(&DEPLOYMENTS, "create"),
            json!({
                "message": "create is not supported on resources of kind \"deployments.apps\"",
                "reason": "MethodNotAllowed", "code": 405, "details": {"group": "apps", "kind": "deployments"},
            }),
        );
        check(
            &Status::server_timeout(&PODS, "get", 2),
            json!({
                "message": "The get operation against pods could not be completed at this time, please try again.",
                "reason": "ServerTimeout", "code": 500, "details": {"name": "get", "kind": "pods", "retryAfterSeconds": 2},
            }),
        );
    }

    #[test]
    fn about_fields() {
        let one = Error::required(&Path::new("spec").child("selector"), "");
        let two = Error::invalid(&Path::new("spec").child("replicas"), -1, "must be greater than or equal to 0");
        check(
            &Status::invalid("apps", "Deployment", "a", &[one.clone(), two]),
            json!({
                "message": "Deployment.apps \"a\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: \
                            -1: must be greater than or equal to 0]",
                "reason": "Invalid", "code": 422,
                "details": {"name": "a", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"},
                    {
                        "reason": "FieldValueInvalid", "field": "spec.replicas",
                        "message": "Invalid value: -1: must be greater than or equal to 0",
                    },
                ]},
            }),
        );
        let message = Status::invalid("", "Pod", "a", &[one.clone(), one]).message;
        assert_eq!(message, "Pod \"a\" is invalid: spec.selector: Required value");
        assert_eq!(Status::invalid("", "Pod", "a", &[]).message, "Pod \"a\" is invalid");
    }

    #[test]
    fn about_the_request() {
        for (status, code, reason, message) in [
            (Status::unauthorized(), 401, "Unauthorized", "Unauthorized"),
            (Status::bad_request("no"), 400, "BadRequest", "no"),
            (Status::expired("too old resource version: 1 (2)"), 410, "Expired", "too old resource version: 1 (2)"),
            (Status::not_acceptable("no"), 406, "NotAcceptable", "no"),
            (Status::unsupported_media_type("no"), 415, "UnsupportedMediaType", "no"),
            (Status::unavailable("no"), 503, "ServiceUnavailable", "no"),
        ] {
            check(&status, json!({"code": code, "reason": reason, "message": message}));
        }
        check(
            &Status::too_large("limit is 3145728"),
            json!({
                "code": 413, "reason": "RequestEntityTooLarge", "message": "Request entity too large: limit is 3145728",
            }),
        );
        check(
            &Status::timeout("no"),
            json!({"code": 504, "reason": "Timeout", "message": "Timeout: no", "details": {}}),
        );
        check(
            &Status::too_many_requests("later", 1),
            json!({"code": 429, "reason": "TooManyRequests", "message": "later", "details": {"retryAfterSeconds": 1}}),
        );
        check(
            &Status::internal("no"),
            json!({
                "code": 500, "reason": "InternalError", "message": "Internal error occurred: no",
                "details": {"causes": [{"message": "no"}]},
            }),
        );
        check(
            &Status::no_such_resource(),
            json!({
                "code": 404, "reason": "NotFound", "message": "the server could not find the requested resource",
                "details": {},
            }),
        );
    }

    #[test]
    fn foreign_reasons_are_read() {
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Teapot", "code": 418});
        assert_eq!(serde_json::from_value::<Status>(status).unwrap().reason, Reason::Unknown);
    }
}
