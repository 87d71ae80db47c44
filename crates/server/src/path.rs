//! A request's path, parsed once into what authorizer, admission and registry all read.
//!
//! Source: apiserver `pkg/endpoints/request/requestinfo.go`.

use std::borrow::Cow;

use http::Method;

/// What a request wants to do, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// For resources one of create, delete, deletecollection, get, list, patch, update, watch, or what a role names
    /// beside them; for other paths the method in lower case.
    pub verb: Cow<'static, str>,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Resource(Resource),
    /// A path outside `/api/VERSION/…` and `/apis/GROUP/VERSION/…`, such as `/version`.
    Path(String),
}

/// The resource or object that a path names. Fields that it does not name are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    /// Plural, such as `pods`.
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    /// Also set for a list or watch that selects one `metadata.name`.
    pub name: String,
    /// In query form, for lists, watches and deletecollection.
    pub field_selector: String,
    pub label_selector: String,
    /// The path behind the sub-resource, as in `pods/NAME/proxy/REST`.
    pub rest: String,
}

/// Sub-resources that run something: whoever may use them needs `create`, whatever method carries the request.
///
/// A WebSocket can only begin with GET, so the method says nothing; upstream 1.36 asks for `create` as well
/// (kubernetes `pkg/registry/core/pod/rest/subresources.go`).
const ACTIONS: [&str; 3] = ["exec", "attach", "portforward"];

impl Attributes {
    /// Attributes of a request for a resource that did not come as a path: a review or an in-process call.
    pub fn resource(verb: impl Into<Cow<'static, str>>, resource: Resource) -> Self {
        Self { verb: verb.into(), target: Target::Resource(resource) }
    }

    /// Parses a request's method, path and query.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let outside =
            || Self { verb: method.as_str().to_ascii_lowercase().into(), target: Target::Path(path.to_owned()) };
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, mut parts) = match &parts[..] {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return outside(),
        };
        let watch_prefix = parts[0] == "watch" && parts.len() > 1;
        if watch_prefix {
            parts = &parts[1..];
        }
        let mut namespace = "";
        if parts[0] == "namespaces" && parts.len() > 1 {
            namespace = parts[1];
            // `/namespaces/NAME/status` is the namespace's own sub-resource, not a resource in it.
            if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
                parts = &parts[2..];
            }
        }
        let part = |n: usize| parts.get(n).map_or_else(String::new, |p| decoded(p).into_owned());
        let mut at = Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: part(0),
            subresource: part(2),
            namespace: decoded(namespace).into_owned(),
            name: part(1),
            rest: parts.get(3..).unwrap_or_default().join("/"),
            ..Resource::default()
        };
        let mut verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => return Self { verb: method.as_str().to_ascii_lowercase().into(), target: Target::Resource(at) },
        };
        if watch_prefix {
            verb = "watch";
        } else if at.name.is_empty() {
            verb = match verb {
                "get" if query.flag("watch") => "watch",
                "get" => "list",
                "delete" => "deletecollection",
                other => other,
            };
        }
        if matches!(verb, "list" | "watch" | "deletecollection") {
            at.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            at.label_selector = query.get("labelSelector").unwrap_or_default().to_owned();
            if at.name.is_empty() {
                at.name = selected_name(&at.field_selector).unwrap_or_default().to_owned();
            }
        }
        if ACTIONS.contains(&at.subresource.as_str()) {
            verb = "create";
        }
        Self { verb: verb.into(), target: Target::Resource(at) }
    }
}

/// The one name that a field selector admits, when it is written as `metadata.name=NAME`.
pub(crate) fn selected_name(selector: &str) -> Option<&str> {
    selector
        .split(',')
        .filter_map(|term| term.strip_prefix("metadata.name="))
        .map(|name| name.strip_prefix('=').unwrap_or(name))
        .find(|name| !name.is_empty() && !name.contains(['/', '%', '\\']) && !matches!(*name, "." | ".."))
}

/// A query string, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes what stands behind the `?`.
    pub fn parse(query: &str) -> Self {
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (form_decoded(name), form_decoded(value))
        };
        Self(query.split('&').filter(|text| !text.is_empty()).map(pair).collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Every value of a parameter, in order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a boolean parameter is on, by the rule of Go's query conversion: anything but `false` and `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

fn form_decoded(text: &str) -> String {
    decoded(&text.replace('+', " ")).into_owned()
}

/// Resolves `%XX`; what is not valid stays as it is.
pub(crate) fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: &str) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let parsed = Attributes::parse(&method.parse().unwrap(), path, &Query::parse(query));
        let text = match parsed.target {
            Target::Path(path) => format!("{} path {path}", parsed.verb),
            Target::Resource(at) => {
                let Resource { group, version, resource, subresource, namespace, name, rest, .. } = at;
                format!("{} {group}|{version}|{namespace}|{resource}|{name}|{subresource}|{rest}", parsed.verb)
            }
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn paths_of_resources() {
        check("GET", "/api/v1/namespaces", "list |v1||namespaces|||");
        check("GET", "/api/v1/namespaces/a", "get |v1|a|namespaces|a||");
        check("PUT", "/api/v1/namespaces/a/finalize", "update |v1|a|namespaces|a|finalize|");
        check("GET", "/api/v1/namespaces/a/pods", "list |v1|a|pods|||");
        check("GET", "/api/v1/pods?watch=true", "watch |v1||pods|||");
        check("GET", "/api/v1/pods?watch=0", "list |v1||pods|||");
        check("GET", "/api/v1/watch/namespaces/a/pods/b", "watch |v1|a|pods|b||");
        check("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps|v1|a|deployments|||");
        check("GET", "/api/v1/namespaces/a/pods/b/proxy/x/y", "get |v1|a|pods|b|proxy|x/y");
    }

    #[test]
    fn running_something_is_create_whatever_the_method() {
        check("GET", "/api/v1/namespaces/a/pods/b/exec?command=sh", "create |v1|a|pods|b|exec|");
        check("POST", "/api/v1/namespaces/a/pods/b/attach", "create |v1|a|pods|b|attach|");
        check("GET", "/api/v1/namespaces/a/pods/b/log", "get |v1|a|pods|b|log|");
    }

    #[test]
    fn a_list_of_one_name_is_authorized_by_name() {
        check("GET", "/api/v1/nodes?watch&fieldSelector=metadata.name%3Dn1", "watch |v1||nodes|n1||");
        check("GET", "/api/v1/nodes?fieldSelector=metadata.name%3D..", "list |v1||nodes|||");
    }

    #[test]
    fn other_paths() {
        check("GET", "/", "get path /");
        check("GET", "/apis/apps/v1", "get path /apis/apps/v1");
        check("GET", "/api/v1", "get path /api/v1");
        check("POST", "/version", "post path /version");
    }
}
