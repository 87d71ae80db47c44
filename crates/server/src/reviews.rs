//! Answers to reviews: who am I, and what may somebody do.
//!
//! Sources: kubernetes `pkg/registry/{authentication,authorization}/*/rest.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::field;
use api::status::Status;
use serde_json::{Value, json};

use crate::authn::token::{Refused, Tokens};
use crate::authz::ClusterAuthorizer;
use crate::authz::rbac::Rule;
use crate::hooks::{Question, Reviewer};
use crate::identity::{Authorizer, BoxFuture, Decision, SYSTEM_AUTHENTICATED, User};
use crate::path::{Attributes, Resource, Target};

/// Answers all review kinds.
pub struct Reviews {
    pub authorizer: Arc<ClusterAuthorizer>,
    pub tokens: Arc<Tokens>,
}

impl Reviews {
    fn answer(&self, question: Question<'_>) -> Result<Value, Status> {
        let Question { resource, namespace, user, snapshot, mut object } = question;
        object["status"] = match &*resource.resource {
            "selfsubjectreviews" => {
                // Upstream answers with an object of its own.
                object["metadata"] = json!({});
                json!({"userInfo": user_info(user)})
            }
            "tokenreviews" => self.token(&object["spec"])?,
            "selfsubjectrulesreviews" => {
                let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
                if namespace.is_empty() {
                    return Err(Status::bad_request("no namespace on request"));
                }
                let of = namespace.to_owned();
                object["spec"] = json!({});
                rules(&self.authorizer.rbac().policy(snapshot).rules(user, &of).collect::<Vec<_>>())
            }
            "selfsubjectaccessreviews" => self.access(&object["spec"], user, "SelfSubjectAccessReview")?,
            "subjectaccessreviews" => {
                let subject = subject(&object["spec"], "SubjectAccessReview")?;
                self.access(&object["spec"], &subject, "SubjectAccessReview")?
            }
            "localsubjectaccessreviews" => {
                let asked = object["spec"]["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
                if asked != namespace {
                    return Err(Status::bad_request(format!(
                        "spec.resourceAttributes.namespace must match namespace: {namespace}"
                    )));
                }
                let subject = subject(&object["spec"], "LocalSubjectAccessReview")?;
                self.access(&object["spec"], &subject, "LocalSubjectAccessReview")?
            }
            _ => return Err(Status::no_such_resource()),
        };
        Ok(object)
    }

    fn token(&self, spec: &Value) -> Result<Value, Status> {
        let token = spec["token"].as_str().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Status::bad_request("token is required for TokenReview in authentication"))?;
        let wanted: Vec<String> = serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
        Ok(match self.tokens.authenticate(token, &wanted) {
            Ok(mut user) => {
                user.groups.push(SYSTEM_AUTHENTICATED.to_owned());
                let audiences = if wanted.is_empty() { vec![self.tokens.issuer().to_owned()] } else { wanted };
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            Err(Refused::Foreign) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        })
    }

    fn access(&self, spec: &Value, user: &User, kind: &str) -> Result<Value, Status> {
        let attributes = attributes(spec, kind)?;
        Ok(match self.authorizer.authorize(user, &attributes) {
            Decision::Allow(reason) => with_reason(json!({"allowed": true}), &reason),
            Decision::Deny(reason) => with_reason(json!({"allowed": false, "denied": true}), &reason),
            Decision::NoOpinion(reason) => with_reason(json!({"allowed": false}), &reason),
        })
    }
}

fn with_reason(mut status: Value, reason: &str) -> Value {
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    status
}

/// Source: kubernetes `pkg/apis/authorization/validation/validation.go`.
fn attributes(spec: &Value, kind: &str) -> Result<Attributes, Status> {
    let path = field::Path::new("spec");
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let invalid = |error| Err(Status::invalid("authorization.k8s.io", kind, "", &[error]));
    match (&spec["resourceAttributes"], &spec["nonResourceAttributes"]) {
        (Value::Object(_), Value::Object(_)) => invalid(field::Error::invalid(
            &path.child("nonResourceAttributes"),
            spec["nonResourceAttributes"].clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (at @ Value::Object(_), _) => Ok(Attributes::resource(
            text(at, "verb"),
            Resource {
                group: text(at, "group"),
                version: text(at, "version"),
                resource: text(at, "resource"),
                subresource: text(at, "subresource"),
                namespace: text(at, "namespace"),
                name: text(at, "name"),
                ..Resource::default()
            },
        )),
        (_, at @ Value::Object(_)) => {
            Ok(Attributes { verb: text(at, "verb").into(), target: Target::Path(text(at, "path")) })
        }
        _ => invalid(field::Error::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
    }
}

fn subject(spec: &Value, kind: &str) -> Result<User, Status> {
    let groups: Vec<String> = serde_json::from_value(spec["groups"].clone()).unwrap_or_default();
    let extra: BTreeMap<String, Vec<String>> = serde_json::from_value(spec["extra"].clone()).unwrap_or_default();
    let text = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    if text("user").is_empty() && groups.is_empty() {
        let path = field::Path::new("spec").child("user");
        let error = field::Error::invalid(&path, "", "at least one of user or group must be specified");
        return Err(Status::invalid("authorization.k8s.io", kind, "", &[error]));
    }
    Ok(User { name: text("user"), uid: text("uid"), groups, extra })
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn rules(held: &[&Rule]) -> Value {
    let resource: Vec<Value> = held
        .iter()
        .filter(|rule| !rule.resources.is_empty())
        .map(|rule| {
            let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            shown
        })
        .collect();
    let paths = held.iter().filter(|rule| !rule.non_resource_urls.is_empty());
    let non_resource: Vec<Value> =
        paths.map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls})).collect();
    json!({"resourceRules": resource, "nonResourceRules": non_resource, "incomplete": false})
}

impl Reviewer for Reviews {
    fn review<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Value, Status>> {
        let answer = self.answer(question);
        Box::pin(async { answer })
    }
}
