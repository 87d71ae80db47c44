//! Answers to reviews: who am I, and what may somebody do.
//!
//! Sources: kubernetes `pkg/registry/{authentication,authorization}/*/rest.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::field;
use api::selector::fields::{self, FieldSelector};
use api::selector::{LabelSelector, Selector};
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
                // As above, but for what was asked.
                object["metadata"] = json!({});
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
        let (attributes, unread) = attributes(spec, kind)?;
        let (mut status, reason) = match self.authorizer.authorize(user, &attributes) {
            Decision::Allow(reason) => (json!({"allowed": true}), reason),
            Decision::Deny(reason) => (json!({"allowed": false, "denied": true}), reason),
            Decision::NoOpinion(reason) => (json!({"allowed": false}), reason),
        };
        for (field, text) in [("reason", reason), ("evaluationError", unread)] {
            if !text.is_empty() {
                status[field] = json!(text);
            }
        }
        Ok(status)
    }
}

/// What is asked about, and what of its selectors could not be read.
///
/// Source: kubernetes `pkg/apis/authorization/validation/validation.go`, `pkg/registry/authorization/util/helpers.go`.
fn attributes(spec: &Value, kind: &str) -> Result<(Attributes, String), Status> {
    let path = field::Path::new("spec");
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let invalid = |error| Err(Status::invalid("authorization.k8s.io", kind, "", &[error]));
    match (&spec["resourceAttributes"], &spec["nonResourceAttributes"]) {
        (Value::Object(_), Value::Object(_)) => invalid(field::Error::invalid(
            &path.child("nonResourceAttributes"),
            spec["nonResourceAttributes"].clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (at @ Value::Object(_), _) => {
            let (field_selector, of_fields) = selector(&at["fieldSelector"], field_raw, field_requirement);
            let (label_selector, of_labels) = selector(&at["labelSelector"], label_raw, label_requirement);
            let resource = Resource {
                group: text(at, "group"),
                version: text(at, "version"),
                resource: text(at, "resource"),
                subresource: text(at, "subresource"),
                namespace: text(at, "namespace"),
                name: text(at, "name"),
                field_selector,
                label_selector,
                ..Resource::default()
            };
            let unread = [("fieldSelector", of_fields), ("labelSelector", of_labels)].into_iter();
            let unread = unread
                .filter_map(|(name, how)| Some(format!("spec.resourceAttributes.{name} {} due to parse error", how?)));
            Ok((Attributes::resource(text(at, "verb"), resource), unread.collect::<Vec<_>>().join("; ")))
        }
        (_, at @ Value::Object(_)) => {
            let target = Target::Path(text(at, "path"));
            Ok((Attributes { verb: text(at, "verb").into(), target }, String::new()))
        }
        _ => invalid(field::Error::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
    }
}

/// A review's selector in query form, and how much of it counts for nothing. Requirements that cannot be read are left
/// out, which makes the question a broader one.
fn selector(
    of: &Value,
    raw: fn(&str) -> Option<String>,
    requirement: fn(&Value) -> Option<String>,
) -> (String, Option<&'static str>) {
    let requirements = of["requirements"].as_array().map_or(&[][..], Vec::as_slice);
    if requirements.is_empty() {
        return match of["rawSelector"].as_str().filter(|text| !text.is_empty()).map(raw) {
            Some(Some(text)) => (text, None),
            Some(None) => (String::new(), Some("ignored")),
            None => (String::new(), None),
        };
    }
    let known: Vec<String> = requirements.iter().filter_map(requirement).collect();
    let how = match known.len() {
        count if count == requirements.len() => None,
        0 => Some("ignored"),
        _ => Some("partially ignored"),
    };
    (known.join(","), how)
}

fn field_raw(text: &str) -> Option<String> {
    FieldSelector::parse(text).ok().map(|selector| selector.to_string())
}

fn label_raw(text: &str) -> Option<String> {
    Selector::parse(text).ok().map(|selector| selector.to_string())
}

/// Fields have one value or have it not.
fn field_requirement(requirement: &Value) -> Option<String> {
    let [value] = requirement["values"].as_array()?.as_slice() else { return None };
    let equal = match requirement["operator"].as_str()? {
        "In" => true,
        "NotIn" => false,
        _ => return None,
    };
    let (field, value) = (requirement["key"].as_str().unwrap_or_default().to_owned(), value.as_str()?.to_owned());
    Some(FieldSelector::all(vec![fields::Requirement { field, equal, value }]).to_string())
}

fn label_requirement(requirement: &Value) -> Option<String> {
    let one = serde_json::from_value(requirement.clone()).ok()?;
    let selector = LabelSelector { match_expressions: vec![one], ..LabelSelector::default() };
    Selector::try_from(&selector).ok().map(|selector| selector.to_string())
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
