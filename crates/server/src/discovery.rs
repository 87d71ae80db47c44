//! Discovery: what is served, in the old form of one document a version and in the new one of one document for all.
//!
//! Source: apiserver `pkg/endpoints/discovery`, `pkg/endpoints/discovery/aggregated`.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use kinds::kind::{Kind, Verb};
use ring::digest;
use serde_json::{Value, json};

use crate::http::negotiate::{self, Format, Offer};
use crate::http::reply::{self, Body};
use crate::path::Query;
use crate::registry::catalog::{Catalog, Served};

/// Documents by path, made once: what is served does not change while the server runs.
pub struct Discovery {
    documents: BTreeMap<String, Value>,
    /// Of `/api` and `/apis`.
    aggregated: BTreeMap<&'static str, Aggregated>,
}

struct Aggregated {
    items: Value,
    etag: HeaderValue,
}

const AGGREGATED_TYPES: [(&str, &str); 2] = [
    ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
];

impl Discovery {
    /// Makes the documents. `advertised` is the `HOST:PORT` at which clients reach this server.
    pub fn new(catalog: &Catalog, advertised: &str) -> Self {
        let mut documents = BTreeMap::new();
        let mut groups: BTreeMap<&str, Vec<(&str, Vec<&Served>)>> = BTreeMap::new();
        for ((group, version), served) in catalog.by_group_version() {
            groups.entry(group).or_default().push((version, served));
        }
        let mut listed = Vec::new();
        for (group, versions) in &groups {
            for (version, served) in versions {
                let (path, name) = match *group {
                    "" => (format!("/api/{version}"), (*version).to_owned()),
                    group => (format!("/apis/{group}/{version}"), format!("{group}/{version}")),
                };
                let resources: Vec<Value> = served.iter().flat_map(|served| resources(served)).collect();
                let mut document = json!({"kind": "APIResourceList", "groupVersion": name, "resources": resources});
                if !group.is_empty() {
                    // Upstream writes the core's in the form of its first release, without a version.
                    document["apiVersion"] = "v1".into();
                }
                documents.insert(path, document);
            }
            if !group.is_empty() {
                let document = api_group(group, versions);
                let mut alone = document.clone();
                alone["kind"] = "APIGroup".into();
                alone["apiVersion"] = "v1".into();
                documents.insert(format!("/apis/{group}"), alone);
                listed.push(document);
            }
        }
        documents.insert("/apis".to_owned(), json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}));
        documents.insert(
            "/api".to_owned(),
            json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": advertised}],
            }),
        );
        let of = |core: bool| {
            let items: Vec<Value> = groups
                .iter()
                .filter(|(group, _)| group.is_empty() == core)
                .map(|(group, versions)| aggregated_group(group, versions))
                .collect();
            Aggregated { etag: etag(&items.iter().map(Value::to_string).collect::<String>()), items: items.into() }
        };
        Self { documents, aggregated: BTreeMap::from([("/api", of(true)), ("/apis", of(false))]) }
    }

    /// The paths that [`answer`](Self::answer) knows.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.documents.keys().map(String::as_str)
    }

    /// Answers a discovery path, or `None` when it is none.
    pub fn answer(&self, path: &str, headers: &HeaderMap, query: &Query) -> Option<Response<Body>> {
        let path = path.trim_end_matches('/');
        let document = self.documents.get(path)?;
        if let Some(aggregated) = self.aggregated.get(path)
            && let Some((version, media_type)) = aggregated_type(headers)
        {
            return Some(aggregated.answer(version, media_type, headers));
        }
        Some(match negotiate::negotiate(headers, query, Offer::Whole) {
            Ok(accepted) => reply::value(StatusCode::OK, accepted.format, document),
            Err(status) => reply::status(&status),
        })
    }
}

/// The first form that the client prefers, when it is an aggregated one.
fn aggregated_type(headers: &HeaderMap) -> Option<(&'static str, &'static str)> {
    let header = negotiate::accept(headers);
    for range in negotiate::ranges(&header) {
        match (range.media_type.as_str(), range.target()) {
            (
                "application/json" | "*/*" | "application/*",
                Some(("APIGroupDiscoveryList", "apidiscovery.k8s.io", version)),
            ) => {
                if let Some(found) = AGGREGATED_TYPES.iter().find(|(known, _)| *known == version) {
                    return Some(*found);
                }
            }
            ("application/json" | "application/yaml" | "*/*" | "application/*", None) => return None,
            _ => {}
        }
    }
    None
}

impl Aggregated {
    fn answer(&self, version: &str, media_type: &'static str, headers: &HeaderMap) -> Response<Body> {
        let known = headers.get(IF_NONE_MATCH).is_some_and(|tag| tag == self.etag);
        let mut response = if known {
            let mut response = Response::new(reply::full(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let document = json!({
                "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {}, "items": self.items,
            });
            reply::value(StatusCode::OK, Format::Json, &document)
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response.headers_mut().insert(ETAG, self.etag.clone());
        response.headers_mut().insert(VARY, HeaderValue::from_static(ACCEPT.as_str()));
        response
    }
}

/// A strong validator of a document: its hash, quoted.
pub fn etag(text: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{}\"", hash(text.as_bytes()))).expect("hexadecimal digits are a header value")
}

/// The first 32 digits of the SHA-512, in capitals, as upstream writes hashes.
pub fn hash(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA512, bytes).as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect()
}

fn api_group(group: &str, versions: &[(&str, Vec<&Served>)]) -> Value {
    let all: Vec<Value> = preferred_first(versions)
        .map(|(version, _)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": all[0], "versions": all})
}

/// Every group here serves one version; with more, the newest stable one comes first.
fn preferred_first<'a, 'b>(
    versions: &'a [(&'b str, Vec<&'b Served>)],
) -> impl Iterator<Item = &'a (&'b str, Vec<&'b Served>)> {
    let mut order: Vec<_> = versions.iter().collect();
    order
        .sort_by_key(|(version, _)| (version.contains("alpha"), version.contains("beta"), std::cmp::Reverse(*version)));
    order.into_iter()
}

fn verbs(verbs: &[Verb]) -> Vec<String> {
    let mut names: Vec<String> = verbs.iter().map(|verb| format!("{verb:?}").to_lowercase()).collect();
    names.sort();
    names
}

fn resources(served: &Served) -> Vec<Value> {
    let kind = &served.kind;
    let names = &kind.names;
    let mut resource = json!({
        "name": names.resource.resource, "singularName": names.singular, "namespaced": served.is_namespaced(),
        "kind": names.kind, "verbs": verbs(kind.verbs),
    });
    if !names.short.is_empty() {
        resource["shortNames"] = json!(names.short);
    }
    if !names.categories.is_empty() {
        resource["categories"] = json!(names.categories);
    }
    if kind.answered.is_none() {
        resource["storageVersionHash"] = storage_version_hash(kind).into();
    }
    let mut out = vec![resource];
    for sub in &kind.subresources {
        let mut resource = json!({
            "name": format!("{}/{}", names.resource.resource, sub.name), "singularName": "",
            "namespaced": served.is_namespaced(), "kind": names.kind, "verbs": verbs(sub.verbs),
        });
        if let Some((group, version, body)) = sub.body {
            resource["kind"] = body.into();
            if (group, version) != (&*served.version().group, &*served.version().version) {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
        }
        out.push(resource);
    }
    out
}

/// Tells clients of a changed storage version; upstream's form is eight bytes in base64.
fn storage_version_hash(kind: &Kind) -> String {
    use base64::Engine;
    let storage = &kind.versions[0];
    let text = format!("{}/{}/{}", storage.group, storage.version, kind.names.kind);
    let sum = digest::digest(&digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&sum.as_ref()[..8])
}

fn aggregated_group(group: &str, versions: &[(&str, Vec<&Served>)]) -> Value {
    let versions: Vec<Value> = preferred_first(versions)
        .map(|(version, served)| {
            let resources: Vec<Value> = served.iter().map(|served| aggregated_resource(served)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = group.into();
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(served: &Served) -> Value {
    let kind = &served.kind;
    let names = &kind.names;
    let mut resource = json!({
        "resource": names.resource.resource,
        "responseKind": {"group": "", "version": "", "kind": names.kind},
        "scope": if served.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": names.singular,
        "verbs": verbs(kind.verbs),
    });
    if !names.short.is_empty() {
        resource["shortNames"] = json!(names.short);
    }
    if !names.categories.is_empty() {
        resource["categories"] = json!(names.categories);
    }
    if !kind.subresources.is_empty() {
        let sub = |sub: &kinds::kind::Subresource| {
            // Group and version are named where they are not those of the document.
            let (group, version, kind) = sub.body.unwrap_or(("", "", &names.kind));
            json!({
                "subresource": sub.name, "verbs": verbs(sub.verbs),
                "responseKind": {"group": group, "version": version, "kind": kind},
            })
        };
        resource["subresources"] = kind.subresources.iter().map(sub).collect();
    }
    resource
}
