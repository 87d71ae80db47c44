//! OpenAPI v3: one document for each group and version, made when it is first asked for and kept compressed.
//!
//! kubectl needs it to explain fields, and before it leaves validation to the server. The structure comes from
//! [`kinds::schema`], the texts from `facts/descriptions-1.37.tsv.gz`. Source: kube-openapi `pkg/handler3`, kubernetes
//! `api/openapi-spec/v3`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Mutex;

use api::schema::{Field, ListType, Scalar, Shape, Type};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use kinds::kind::{Action, Verb};
use serde_json::{Map, Value, json};

use crate::discovery::{etag, hash};
use crate::http::negotiate::{self, Format};
use crate::http::reply::{self, Body};
use crate::path::Query;
use crate::registry::catalog::{Catalog, Served};
use crate::server::VERSION;

static DESCRIPTIONS: &[u8] = include_bytes!("../facts/descriptions-1.37.tsv.gz");

/// The documents, by group and version.
pub struct OpenApi {
    /// By the path below `/openapi/v3/`, such as `apis/apps/v1`.
    groups: BTreeMap<String, Group>,
    index: Value,
    made: Mutex<BTreeMap<String, Bytes>>,
}

struct Group {
    served: Vec<Served>,
    hash: String,
}

const REF: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

impl OpenApi {
    /// Makes the index; the documents follow when they are asked for.
    pub fn new(catalog: &Catalog) -> Self {
        let mut groups = BTreeMap::new();
        let mut paths = Map::new();
        let texts = hash(DESCRIPTIONS);
        for ((group, version), served) in catalog.by_group_version() {
            let path = match group {
                "" => format!("api/{version}"),
                group => format!("apis/{group}/{version}"),
            };
            let names: Vec<String> = served.iter().map(|served| served.group_resource().to_string()).collect();
            // What the documents are made of, so that none has to be made to know its hash.
            let hash = hash(format!("{VERSION} {path} {texts} {}", names.join(" ")).as_bytes());
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path.clone(), json!({"serverRelativeURL": url}));
            groups.insert(path, Group { served: served.into_iter().cloned().collect(), hash });
        }
        Self { groups, index: json!({"paths": paths}), made: Mutex::default() }
    }

    /// Answers a path below `/openapi`, or `None` for any other.
    pub fn answer(&self, path: &str, headers: &HeaderMap, query: &Query) -> Option<Response<Body>> {
        if path == "/openapi/v2" {
            return Some(version_2(headers));
        }
        let below = path.strip_prefix("/openapi/v3")?.trim_matches('/');
        if !accepts_json(headers) {
            return Some(reply::status(&negotiate::not_acceptable()));
        }
        if below.is_empty() {
            let tag = etag(&self.index.to_string());
            let mut response = match headers.get(IF_NONE_MATCH) {
                Some(known) if known == tag => not_modified(),
                _ => reply::value(StatusCode::OK, Format::Json, &self.index),
            };
            response.headers_mut().insert(ETAG, tag);
            return Some(response);
        }
        let group = self.groups.get(below)?;
        let tag = HeaderValue::from_str(&format!("\"{}\"", group.hash)).expect("digits are a header value");
        let mut response = if headers.get(IF_NONE_MATCH).is_some_and(|known| *known == tag) {
            not_modified()
        } else {
            self.document(below, group, headers)
        };
        response.headers_mut().insert(ETAG, tag);
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        if query.get("hash") == Some(&group.hash) {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Some(response)
    }

    fn document(&self, path: &str, group: &Group, headers: &HeaderMap) -> Response<Body> {
        let kept = self.made.lock().expect("no holder of this lock can panic").get(path).cloned();
        let packed = kept.unwrap_or_else(|| {
            let packed = pack(&group.served);
            self.made.lock().expect("no holder of this lock can panic").insert(path.to_owned(), packed.clone());
            packed
        });
        let encodings = headers.get(http::header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        let gzip = encodings.unwrap_or_default().split(',').any(|one| one.trim().starts_with("gzip"));
        let body = if gzip { packed } else { unpack(&packed).into() };
        let mut response = Response::new(reply::full(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if gzip {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// What clients ask for after version 3 has no such group: without an answer kubectl calls a kind that is not served an
/// unreachable resource. It names no types: those are in version 3, and clients skip checks of types that they do not find.
fn version_2(headers: &HeaderMap) -> Response<Body> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    if accepts_json(headers) {
        let info = json!({"title": "Kubernetes", "version": VERSION});
        let document = json!({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}});
        return reply::value(StatusCode::OK, Format::Json, &document);
    }
    // Document { swagger = 1, info = 2 { title = 1, version = 2 } } of gnostic's OpenAPIv2.proto.
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("the texts are short");
        [&[number << 3 | 2, length], bytes].concat()
    };
    let info = [field(1, b"Kubernetes"), field(2, VERSION.as_bytes())].concat();
    let mut response = Response::new(reply::full([field(1, b"2.0"), field(2, &info)].concat()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    response
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let header = negotiate::accept(headers);
    header.is_empty()
        || negotiate::ranges(&header)
            .iter()
            .any(|range| ["application/json", "application/*", "*/*"].contains(&range.media_type.as_str()))
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(reply::full(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn pack(served: &[Served]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    write_document(served, &mut encoder).and_then(|()| encoder.finish()).expect("memory takes every write").into()
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut out).expect("it was packed by this program");
    out
}

/// Descriptions by type and field; a type's own is under the empty field.
struct Descriptions<'a>(BTreeMap<(&'a str, &'a str), &'a str>);

impl<'a> Descriptions<'a> {
    fn parse(table: &'a str) -> Self {
        let mut of = "";
        let mut all = BTreeMap::new();
        for line in table.lines() {
            match line.strip_prefix('\t').map(|rest| rest.split_once('\t')) {
                Some(Some((field, text))) => drop(all.insert((of, field), text)),
                Some(None) => {}
                None => {
                    let (name, text) = line.split_once('\t').unwrap_or((line, ""));
                    of = name;
                    all.insert((of, ""), text);
                }
            }
        }
        Self(all)
    }

    fn get(&self, of: &str, field: &str) -> Option<String> {
        let text = self.0.get(&(of, field)).filter(|text| !text.is_empty())?;
        let mut out = String::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\\' => out.push(match rest.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    other => other.unwrap_or('\\'),
                }),
                c => out.push(c),
            }
        }
        Some(out)
    }
}

/// Writes the document of one group and version, piece by piece: as one value it would take megabytes.
fn write_document(served: &[Served], out: &mut impl Write) -> io::Result<()> {
    let info = json!({"title": "Kubernetes", "version": VERSION});
    write!(out, "{{\"openapi\":\"3.0.0\",\"info\":{info},\"paths\":")?;
    let mut paths = Members::new(out);
    for served in served {
        add_paths(served, &mut paths)?;
    }
    paths.end()?;
    let table = String::from_utf8(unpack(DESCRIPTIONS)).expect("the table is text");
    let mut schemas = Schemas { texts: Descriptions::parse(&table), seen: BTreeSet::new(), open: Vec::new() };
    write!(out, ",\"components\":{{\"schemas\":")?;
    let mut members = Members::new(out);
    for served in served {
        schemas.want(&served.version().schema);
        for sub in &served.kind.subresources {
            if let (_, Some(of)) = crate::http::write::body_type(served, sub) {
                schemas.want(of.name());
            }
        }
        if served.kind.verbs.contains(&Verb::List) {
            let (name, schema) = schemas.list(served);
            members.add(&name, &schema)?;
        }
    }
    for name in ["DeleteOptions", "Status"] {
        schemas.want(&format!("{META}{name}"));
    }
    while let Some((name, schema)) = schemas.next() {
        members.add(&name, &schema)?;
    }
    members.end()?;
    write!(out, "}}}}")
}

/// A JSON object that is written member by member.
struct Members<'a, W> {
    out: &'a mut W,
    separator: &'static str,
}

impl<'a, W: Write> Members<'a, W> {
    fn new(out: &'a mut W) -> Self {
        Self { out, separator: "{" }
    }

    fn add(&mut self, name: &str, value: &Value) -> io::Result<()> {
        let separator = std::mem::replace(&mut self.separator, ",");
        write!(self.out, "{separator}{}:{value}", Value::from(name))
    }

    fn end(self) -> io::Result<()> {
        self.out.write_all(if self.separator == "{" { b"{}" } else { b"}" })
    }
}

/// The schemas of a document, each with those that it refers to.
struct Schemas<'a> {
    texts: Descriptions<'a>,
    seen: BTreeSet<String>,
    open: Vec<String>,
}

impl Schemas<'_> {
    fn want(&mut self, name: &str) {
        if !self.seen.contains(name) {
            self.seen.insert(name.to_owned());
            self.open.push(name.to_owned());
        }
    }

    fn next(&mut self) -> Option<(String, Value)> {
        let name = self.open.pop()?;
        let schema = match kinds::schema::get(&name) {
            Some(of) => self.object(of),
            None => well_known(&name),
        };
        Some((name, schema))
    }

    fn object(&mut self, of: Type<'_>) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in of.fields() {
            properties.insert(field.name().to_owned(), self.property(of, field));
            if field.is_required() {
                required.push(field.name());
            }
        }
        let mut schema = json!({"type": "object"});
        if let Some(text) = self.texts.get(of.name(), "") {
            schema["description"] = text.into();
        }
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if of.is_atomic() {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(union) = union(of.short_name()) {
            schema["x-kubernetes-unions"] = json!([union]);
        }
        if let Some((group, version, kind)) = of.gvk() {
            schema["x-kubernetes-group-version-kind"] = json!([gvk(group, version, kind)]);
        }
        schema
    }

    fn property(&mut self, of: Type<'_>, field: Field<'_>) -> Value {
        let mut schema = if field.name() == "fieldsV1" {
            self.want(FIELDS_V1);
            json!({"$ref": format!("{REF}{FIELDS_V1}")})
        } else {
            self.shape(field.shape())
        };
        // A reference has no room for anything beside it.
        if let Some(reference) = schema.get("$ref") {
            schema = json!({"allOf": [{"$ref": reference}]});
        }
        if let Some(text) = self.texts.get(of.name(), field.name()) {
            schema["description"] = text.into();
        }
        if let Some(default) = field.default().cloned().or_else(|| zero_default(field)) {
            schema["default"] = default;
        }
        if let Some(list) = field.list_type() {
            schema["x-kubernetes-list-type"] = match list {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            }
            .into();
        }
        let keys: Vec<&str> = field.list_map_keys().collect();
        if !keys.is_empty() {
            schema["x-kubernetes-list-map-keys"] = json!(keys);
        }
        if field.is_atomic() {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(key) = field.merge_key() {
            schema["x-kubernetes-patch-merge-key"] = key.into();
        }
        let patch = field.patch_strategy();
        let strategies: Vec<&str> =
            [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")]
                .into_iter()
                .filter_map(|(set, name)| set.then_some(name))
                .collect();
        if !strategies.is_empty() {
            schema["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        schema
    }

    fn shape(&mut self, shape: Shape<'_>) -> Value {
        let mut reference = |name: &str| {
            self.want(name);
            json!({"$ref": format!("{REF}{name}")})
        };
        match shape {
            Shape::Object(of) => reference(of.name()),
            Shape::List(items) => {
                let items = self.shape(items.shape());
                json!({"type": "array", "items": items})
            }
            Shape::Map(values) => {
                let values = self.shape(values.shape());
                json!({"type": "object", "additionalProperties": values})
            }
            Shape::Scalar(scalar) => match scalar {
                Scalar::String => json!({"type": "string"}),
                Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
                Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
                Scalar::Number => json!({"type": "number", "format": "double"}),
                Scalar::Bool => json!({"type": "boolean"}),
                Scalar::Bytes => json!({"type": "string", "format": "byte"}),
                Scalar::Quantity => reference(QUANTITY),
                Scalar::IntOrString => reference(INT_OR_STRING),
                Scalar::Time => reference(&format!("{META}Time")),
                Scalar::MicroTime => reference(&format!("{META}MicroTime")),
                Scalar::Any => json!({"type": "object"}),
            },
        }
    }

    fn list(&mut self, served: &Served) -> (String, Value) {
        let name = &served.version().schema;
        let list_meta = format!("{META}ListMeta");
        self.want(&list_meta);
        let kind = format!("{}List", served.kind_name());
        let version = served.version();
        let schema = json!({
            "type": "object",
            "description": format!("{kind} is a list of {}.", served.kind_name()),
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"allOf": [{"$ref": format!("{REF}{list_meta}")}]},
                "items": {"type": "array", "items": {"$ref": format!("{REF}{name}")}},
            },
            "required": ["items"],
            "x-kubernetes-group-version-kind": [gvk(&version.group, &version.version, &kind)],
        });
        (format!("{name}List"), schema)
    }
}

/// Of the types of which one field says which of the others counts.
fn union(of: &str) -> Option<Value> {
    match of {
        "AppArmorProfile" | "SeccompProfile" => {
            Some(json!({"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}))
        }
        "PodSchedulingGroup" => Some(json!({"fields-to-discriminateBy": {"podGroupName": "PodGroupName"}})),
        _ => None,
    }
}

/// What upstream's generator takes for the default of a field that is never left out.
fn zero_default(field: Field<'_>) -> Option<Value> {
    let zero = field.zero().filter(|zero| !zero.is_null() && !field.is_pointer())?;
    let has_one = matches!(
        field.shape(),
        Shape::Object(_) | Shape::Scalar(Scalar::String | Scalar::Int32 | Scalar::Int64 | Scalar::Bool)
    );
    has_one.then(|| zero.clone())
}

/// Types that are written as one value.
fn well_known(name: &str) -> Value {
    match name {
        QUANTITY => json!({
            "description": "A quantity such as 500m, 1Gi or 1e3.",
            "oneOf": [{"type": "string"}, {"type": "number"}],
        }),
        INT_OR_STRING => json!({
            "description": "A whole number, or a string.",
            "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}],
        }),
        FIELDS_V1 => json!({"description": "A set of fields, as a tree.", "type": "object"}),
        _ if name.ends_with("Time") => json!({
            "description": "A moment in the form of RFC 3339.", "type": "string", "format": "date-time",
        }),
        _ => json!({"type": "object"}),
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

const PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// The paths of a kind and its sub-resources.
fn add_paths<W: Write>(served: &Served, paths: &mut Members<'_, W>) -> io::Result<()> {
    let version = served.version();
    let root = match &*version.group {
        "" => format!("/api/{}", version.version),
        group => format!("/apis/{group}/{}", version.version),
    };
    let plural = &served.kind.names.resource.resource;
    let collection = match served.is_namespaced() {
        true => format!("{root}/namespaces/{{namespace}}/{plural}"),
        false => format!("{root}/{plural}"),
    };
    let own = gvk(&version.group, &version.version, served.kind_name());
    let schema = format!("{REF}{}", version.schema);
    let named = format!("{collection}/{{name}}");
    let all: BTreeSet<Verb> = served.kind.verbs.iter().copied().collect();
    let (on_collection, on_object): (BTreeSet<Verb>, BTreeSet<Verb>) =
        all.into_iter().partition(|verb| matches!(verb, Verb::Create | Verb::List | Verb::DeleteCollection));
    add_path(paths, &collection, &on_collection, &own, &schema)?;
    add_path(paths, &named, &on_object, &own, &schema)?;
    if served.is_namespaced() && served.kind.verbs.contains(&Verb::List) {
        add_path(paths, &format!("{root}/{plural}"), &BTreeSet::from([Verb::List]), &own, &schema)?;
    }
    if served.kind.verbs.contains(&Verb::Watch) {
        let watched = |path: &str| path.replacen(&root, &format!("{root}/watch"), 1);
        add_watch(paths, &watched(&collection), "watchlist", &own)?;
        add_watch(paths, &watched(&named), "watch", &own)?;
        if served.is_namespaced() {
            add_watch(paths, &format!("{root}/watch/{plural}"), "watchlist", &own)?;
        }
    }
    for sub in &served.kind.subresources {
        let of = sub.body.map_or_else(|| own.clone(), |(group, version, kind)| gvk(group, version, kind));
        let path = format!("{named}/{}", sub.name);
        if matches!(sub.action, Action::Proxy) {
            add_proxy(paths, &path, &of)?;
            add_proxy(paths, &format!("{path}/{{path}}"), &of)?;
            continue;
        }
        let (_, body) = crate::http::write::body_type(served, sub);
        let schema = body.map_or_else(|| schema.clone(), |body| format!("{REF}{}", body.name()));
        add_path(paths, &path, &sub.verbs.iter().copied().collect(), &of, &schema)?;
    }
    Ok(())
}

fn add_path<W: Write>(
    paths: &mut Members<'_, W>,
    path: &str,
    verbs: &BTreeSet<Verb>,
    gvk: &Value,
    schema: &str,
) -> io::Result<()> {
    let mut item = Map::new();
    for verb in verbs {
        let (method, action) = match verb {
            Verb::Create => ("post", "post"),
            Verb::Delete => ("delete", "delete"),
            Verb::DeleteCollection => ("delete", "deletecollection"),
            Verb::Get => ("get", "get"),
            Verb::List => ("get", "list"),
            Verb::Patch => ("patch", "patch"),
            Verb::Update => ("put", "put"),
            // Watching is listing with a parameter.
            Verb::Watch => continue,
        };
        let mut operation = json!({
            "parameters": parameters(*verb),
            "responses": {"200": {"description": "OK", "content": content(&["application/json", "application/yaml"], schema)}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        match verb {
            Verb::Create | Verb::Update => {
                operation["requestBody"] =
                    json!({"required": true, "content": content(&["application/json", "application/yaml"], schema)});
            }
            Verb::Patch => {
                let patch = json!({"schema": {"type": "object"}});
                let content: Map<String, Value> = PATCHES.iter().map(|p| ((*p).to_owned(), patch.clone())).collect();
                operation["requestBody"] = json!({"required": true, "content": content});
            }
            Verb::Delete | Verb::DeleteCollection | Verb::Get | Verb::List | Verb::Watch => {}
        }
        item.insert(method.to_owned(), operation);
    }
    if item.is_empty() {
        return Ok(());
    }
    add_parameters(&mut item, path);
    paths.add(path, &item.into())
}

/// The old form of a list with the parameter `watch`.
fn add_watch<W: Write>(paths: &mut Members<'_, W>, path: &str, action: &str, gvk: &Value) -> io::Result<()> {
    let operation = json!({
        "description": "Deprecated: list with the parameter watch instead.",
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    let mut item = Map::from_iter([("get".to_owned(), operation)]);
    add_parameters(&mut item, path);
    paths.add(path, &item.into())
}

/// A path whose requests are passed on, whatever their method and body.
fn add_proxy<W: Write>(paths: &mut Members<'_, W>, path: &str, gvk: &Value) -> io::Result<()> {
    let operation = json!({
        "responses": {"200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}},
        "x-kubernetes-action": "connect",
        "x-kubernetes-group-version-kind": gvk,
    });
    let methods = ["delete", "get", "head", "options", "patch", "post", "put"];
    let mut item: Map<String, Value> =
        methods.map(|method| (method.to_owned(), operation.clone())).into_iter().collect();
    add_parameters(&mut item, path);
    paths.add(path, &item.into())
}

/// What stands in the path itself.
fn add_parameters(item: &mut Map<String, Value>, path: &str) {
    let in_path: Vec<Value> = ["namespace", "name", "path"]
        .iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    if !in_path.is_empty() {
        item.insert("parameters".to_owned(), in_path.into());
    }
}

fn content(media_types: &[&str], schema: &str) -> Map<String, Value> {
    media_types.iter().map(|one| ((*one).to_owned(), json!({"schema": {"$ref": schema}}))).collect()
}

fn parameters(verb: Verb) -> Vec<Value> {
    let names: &[(&str, &str)] = match verb {
        Verb::Create | Verb::Update | Verb::Patch => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        Verb::Delete => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        Verb::List | Verb::DeleteCollection => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        Verb::Get | Verb::Watch => &[],
    };
    names.iter().map(|(name, kind)| json!({"name": name, "in": "query", "schema": {"type": kind}})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Value> {
        let catalog = Catalog::new(kinds::registry());
        let by = catalog.by_group_version();
        let document = |served: Vec<&Served>| {
            let mut out = Vec::new();
            write_document(&served.into_iter().cloned().collect::<Vec<_>>(), &mut out).unwrap();
            serde_json::from_slice(&out).unwrap()
        };
        by.into_values().map(document).collect()
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for document in all() {
            let text = document.to_string();
            for part in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn every_kind_has_its_texts() {
        let documents = all();
        let pod = documents.iter().find_map(|d| d["components"]["schemas"].get("io.k8s.api.core.v1.PodSpec")).unwrap();
        for (field, schema) in pod["properties"].as_object().unwrap() {
            assert!(schema["description"].is_string(), "{field}");
        }
        assert_eq!(pod["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
    }
}
