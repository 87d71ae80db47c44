//! Calls as HTTP requests, and answers as objects: the pure half of the transport over TLS.
//!
//! Source: apiserver `pkg/endpoints` (paths), apimachinery `pkg/apis/meta/v1` (`DeleteOptions`, `List`, `WatchEvent`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use api::key::{GroupResource, Key};
use api::object::{Change, Draft, Object};
use api::status::Status;
use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Call, DeleteOptions, Listing, PatchType, Propagation, Scope, Verb};

/// A request but for its host and its credentials.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub content_type: &'static str,
    pub body: Option<Value>,
}

impl Request {
    pub fn new(call: Call) -> Self {
        let mut target = path(&call.resource, call.version, &call.namespace, &call.name);
        if let Some(subresource) = call.subresource {
            let _never_fails = write!(target, "/{subresource}");
        }
        let json = "application/json";
        let (method, content_type, body) = match call.verb {
            Verb::Get => (Method::GET, json, None),
            Verb::Create(object) => (Method::POST, json, Some(object)),
            Verb::Update(object) => (Method::PUT, json, Some(object)),
            Verb::Patch(kind, patch) => (Method::PATCH, media_type(kind), Some(patch)),
            Verb::Delete(options) => (Method::DELETE, json, Some(delete_options(options))),
        };
        Self { method, target, content_type, body }
    }

    /// A list; `from` is the continue token of the page before.
    pub fn list(scope: &Scope, from: Option<&str>) -> Self {
        let limit = PAGE.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(from.map(|token| ("continue", token)));
        Self::read(scope, query)
    }

    /// A watch that the server ends after `seconds`.
    pub fn watch(scope: &Scope, after: u64, seconds: u64) -> Self {
        let (after, seconds) = (after.to_string(), seconds.to_string());
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &after),
            ("timeoutSeconds", &seconds),
        ];
        Self::read(scope, query.to_vec())
    }

    fn read<'a>(scope: &'a Scope, mut query: Vec<(&'a str, &'a str)>) -> Self {
        let mut target = path(&scope.resource, scope.version, scope.namespace.as_deref().unwrap_or_default(), "");
        query.push(("fieldSelector", &scope.field_selector));
        query.push(("labelSelector", &scope.label_selector));
        let mut separator = '?';
        for (name, value) in query.into_iter().filter(|(_, value)| !value.is_empty()) {
            let _never_fails = write!(target, "{separator}{name}={}", escape(value));
            separator = '&';
        }
        Self { method: Method::GET, target, content_type: "application/json", body: None }
    }
}

/// Objects in one page of a list.
const PAGE: u32 = 500;

fn media_type(kind: PatchType) -> &'static str {
    match kind {
        PatchType::Json => "application/json-patch+json",
        PatchType::Merge => "application/merge-patch+json",
        PatchType::Strategic => "application/strategic-merge-patch+json",
    }
}

/// The path of a collection, or of an object.
pub fn path(of: &GroupResource, version: &str, namespace: &str, name: &str) -> String {
    let mut path =
        if of.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{}/{version}", of.group) };
    // A namespace is an object too, and then not in itself.
    if !namespace.is_empty() && &*of.resource != "namespaces" {
        let _never_fails = write!(path, "/namespaces/{}", escape(namespace));
    }
    let _never_fails = write!(path, "/{}", of.resource);
    if !name.is_empty() {
        let _never_fails = write!(path, "/{}", escape(name));
    }
    path
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _never_fails = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn delete_options(options: DeleteOptions) -> Value {
    let mut body =
        Map::from_iter([("apiVersion".to_owned(), json!("v1")), ("kind".to_owned(), json!("DeleteOptions"))]);
    if let Some(seconds) = options.grace_period_seconds {
        body.insert("gracePeriodSeconds".to_owned(), json!(seconds));
    }
    if let Some(propagation) = options.propagation {
        let policy = match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        };
        body.insert("propagationPolicy".to_owned(), json!(policy));
    }
    let mut preconditions = Map::new();
    preconditions.extend(options.uid.map(|uid| ("uid".to_owned(), json!(uid))));
    preconditions.extend(options.resource_version.map(|version| ("resourceVersion".to_owned(), json!(version))));
    if !preconditions.is_empty() {
        body.insert("preconditions".to_owned(), Value::Object(preconditions));
    }
    Value::Object(body)
}

/// Turns a JSON object into one of ours.
///
/// # Errors
/// When it has no metadata, or malformed metadata.
pub fn object(of: &GroupResource, mut value: Value) -> Result<Arc<Object>, Status> {
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    let text = |name: &str| value["metadata"][name].as_str().unwrap_or_default();
    let revision = text("resourceVersion").parse().unwrap_or(0);
    let key = Key::new(of, text("namespace"), text("name"));
    Ok(Draft::new(key, value)
        .map_err(|error| Status::internal(format_args!("malformed object: {error}")))?
        .commit(revision))
}

/// One page of a list.
pub struct Page {
    pub listing: Listing,
    pub next: Option<String>,
}

/// Reads a page; items of lists do not name their kind, so they get it from the list's.
///
/// # Errors
/// When it is no list.
pub fn page(of: &GroupResource, bytes: &[u8]) -> Result<Page, Status> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        api_version: String,
        kind: String,
        metadata: ListMeta,
        items: Option<Vec<Value>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMeta {
        resource_version: String,
        #[serde(default)]
        r#continue: String,
    }
    let malformed = |error: &dyn std::fmt::Display| Status::internal(format_args!("malformed list of {of}: {error}"));
    let list: List = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    let kind = list.kind.strip_suffix("List").unwrap_or(&list.kind);
    let typed = |mut item: Value| {
        if let Some(fields) = item.as_object_mut() {
            fields.entry("apiVersion").or_insert_with(|| json!(list.api_version));
            fields.entry("kind").or_insert_with(|| json!(kind));
        }
        object(of, item)
    };
    let objects = list.items.unwrap_or_default().into_iter().map(typed).collect::<Result<_, _>>()?;
    let revision = list.metadata.resource_version.parse().map_err(|error| malformed(&error))?;
    let next = Some(list.metadata.r#continue).filter(|token| !token.is_empty());
    Ok(Page { listing: Listing { revision, objects }, next })
}

/// What a watch has reported, so that a change can carry the state before it.
#[derive(Default)]
pub struct Known(BTreeMap<Key, Arc<Object>>);

impl Known {
    pub fn new(objects: &[Arc<Object>]) -> Self {
        Self(objects.iter().map(|object| (object.key().clone(), object.clone())).collect())
    }

    /// Reads one line of a watch: the revision it brings, and the change if it is one.
    ///
    /// # Errors
    /// The error that the server reports, or that the line is malformed.
    pub fn read(&mut self, of: &GroupResource, line: &[u8]) -> Result<(u64, Option<Change>), Status> {
        #[derive(Deserialize)]
        struct Event {
            r#type: String,
            object: Value,
        }
        let malformed =
            |error: &dyn std::fmt::Display| Status::internal(format_args!("malformed event of {of}: {error}"));
        let event: Event = serde_json::from_slice(line).map_err(|error| malformed(&error))?;
        if event.r#type == "ERROR" {
            let status = serde_json::from_value(event.object);
            return Err(status.unwrap_or_else(|error| malformed(&error)));
        }
        let object = object(of, event.object)?;
        let revision = object.revision;
        let change = match event.r#type.as_str() {
            "ADDED" | "MODIFIED" => match self.0.insert(object.key().clone(), object.clone()) {
                Some(old) => Some(Change::Modified { old, new: object }),
                None => Some(Change::Added(object)),
            },
            "DELETED" => {
                self.0.remove(object.key());
                Some(Change::Deleted { last: object, revision })
            }
            // Bookmarks, and what later releases may add.
            _ => None,
        };
        Ok((revision, change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resource;
    use expect_test::{Expect, expect};

    fn check(request: &Request, expected: Expect) {
        let body = request.body.as_ref().map_or_else(String::new, |body| format!(" {body}"));
        expected.assert_eq(&format!("{} {} {}{body}", request.method, request.target, request.content_type));
    }

    #[test]
    fn calls_become_paths() {
        let deployments = Resource::new("apps", "v1", "deployments");
        let get = deployments.call(Verb::Get, "web", "a b", Some("status"));
        check(
            &Request::new(get),
            expect!["GET /apis/apps/v1/namespaces/web/deployments/a%20b/status application/json"],
        );
        let namespaces = Resource::new("", "v1", "namespaces");
        let patch = namespaces.call(Verb::Patch(PatchType::Merge, json!({})), "", "web", None);
        check(&Request::new(patch), expect!["PATCH /api/v1/namespaces/web application/merge-patch+json {}"]);
    }

    #[test]
    fn a_namespace_is_not_in_itself() {
        let namespaces = Resource::new("", "v1", "namespaces");
        let get = namespaces.call(Verb::Get, "web", "web", None);
        check(&Request::new(get), expect!["GET /api/v1/namespaces/web application/json"]);
    }

    #[test]
    fn deletions_carry_their_options() {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some("u".into()),
            resource_version: None,
            propagation: Some(Propagation::Foreground),
        };
        let delete = Resource::new("", "v1", "pods").call(Verb::Delete(options), "web", "a", None);
        check(
            &Request::new(delete),
            expect![[
                r#"DELETE /api/v1/namespaces/web/pods/a application/json {"apiVersion":"v1","gracePeriodSeconds":0,"kind":"DeleteOptions","preconditions":{"uid":"u"},"propagationPolicy":"Foreground"}"#
            ]],
        );
    }

    #[test]
    fn scopes_become_queries() {
        let mut scope = Resource::new("", "v1", "pods").everywhere();
        scope.field_selector = "spec.nodeName=a".into();
        check(
            &Request::list(&scope, None),
            expect!["GET /api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Da application/json"],
        );
        scope.namespace = Some("web".into());
        check(
            &Request::watch(&scope, 7, 300),
            expect![
                "GET /api/v1/namespaces/web/pods?watch=true&allowWatchBookmarks=true&resourceVersion=7&timeoutSeconds=300&fieldSelector=spec.nodeName%3Da application/json"
            ],
        );
    }

    #[test]
    fn items_get_the_kind_of_their_list() {
        let list = r#"{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"9","continue":"x"},
            "items":[{"metadata":{"name":"a","namespace":"web","resourceVersion":"3"}}]}"#;
        let page = page(&GroupResource::new("", "pods"), list.as_bytes()).unwrap();
        let object = &page.listing.objects[0];
        assert_eq!((page.listing.revision, object.revision, page.next.as_deref()), (9, 3, Some("x")));
        assert_eq!((object.key().as_str(), &object.value()["kind"]), ("/core/pods/web/a", &json!("Pod")));
    }

    #[test]
    fn events_become_changes() {
        let pods = GroupResource::new("", "pods");
        let mut known = Known::default();
        let mut read = |kind: &str, revision: &str| {
            let object = json!({"metadata": {"name": "a", "namespace": "web", "resourceVersion": revision}});
            known.read(&pods, json!({"type": kind, "object": object}).to_string().as_bytes())
        };
        assert!(matches!(read("ADDED", "1"), Ok((1, Some(Change::Added(_))))));
        let Ok((2, Some(Change::Modified { old, new }))) = read("MODIFIED", "2") else { panic!("a modification") };
        assert_eq!((old.revision, new.revision), (1, 2));
        assert!(matches!(read("BOOKMARK", "5"), Ok((5, None))));
        assert!(matches!(read("DELETED", "6"), Ok((6, Some(Change::Deleted { revision: 6, .. })))));
    }

    #[test]
    fn an_error_event_is_the_servers_error() {
        let line = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410}});
        let error = Known::default().read(&GroupResource::new("", "pods"), line.to_string().as_bytes()).unwrap_err();
        assert_eq!((error.code, error.reason), (410, api::status::Reason::Expired));
    }
}
