//! What a pod gets where it says nothing.
//!
//! Source: kubernetes `pkg/apis/core/v1/defaults.go` and `zz_generated.defaults.go`.

use api::quantity;
use serde_json::{Value, json};

use crate::value::{default, default_text, drop_zero, flag, is_empty, items_mut, number, object, set, text};

const MODE: i64 = 0o644;

const POD_ZEROS: &[&str] = &[
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostname",
    "imagePullSecrets",
    "initContainers",
    "nodeName",
    "nodeSelector",
    "overhead",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "schedulingGates",
    "serviceAccount",
    "serviceAccountName",
    "subdomain",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];

const CONTAINER_ZEROS: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "ports",
    "resizePolicy",
    "stdin",
    "stdinOnce",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// Fills in a whole pod: what a template gets, and what only pods get.
pub fn pod(pod: &mut Value) {
    let Some(spec) = object(pod, "spec") else { return };
    pod_spec(spec);
    if number(&spec["terminationGracePeriodSeconds"]) < 0 {
        set(spec, "terminationGracePeriodSeconds", 1);
    }
    default(spec, "enableServiceLinks", true);
    let host_network = flag(&spec["hostNetwork"]);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec.get_mut(list)) {
            requests_from_limits(container);
            if host_network {
                for port in items_mut(container.get_mut("ports")) {
                    host_port(port);
                }
            }
        }
    }
    if let Some(status) = pod.get_mut("status") {
        pod_status(status);
    }
}

fn host_port(port: &mut Value) {
    let own = port["containerPort"].clone();
    if number(&port["hostPort"]) == 0 && !own.is_null() {
        set(port, "hostPort", own);
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources") else { return };
    let Some(limits) = resources["limits"].as_object().cloned() else { return };
    if let Some(requests) = object(resources, "requests") {
        for (name, limit) in limits {
            default(requests, &name, limit);
        }
    }
}

/// The singular and the plural address say the same; the singular wins.
pub fn pod_status(status: &mut Value) {
    let (one, first) = (status["podIP"].clone(), status["podIPs"][0]["ip"].clone());
    if !is_empty(&one) && one != first {
        set(status, "podIPs", json!([{ "ip": one }]));
    } else if is_empty(&one) && !is_empty(&first) {
        set(status, "podIP", first);
    }
}

/// Fills in a template, as in a Deployment.
pub fn template(template: &mut Value) {
    if let Some(metadata) = template.get_mut("metadata") {
        drop_zero(metadata, &["name", "namespace", "labels", "annotations"]);
    }
    if let Some(spec) = object(template, "spec") {
        pod_spec(spec);
    }
}

/// Fills in the specification of a pod or of a template.
fn pod_spec(spec: &mut Value) {
    drop_zero(spec, POD_ZEROS);
    let account = match text(&spec["serviceAccountName"]) {
        "" => text(&spec["serviceAccount"]).to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        set(spec, "serviceAccountName", account.clone());
        set(spec, "serviceAccount", account);
    }
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default_text(spec, "schedulerName", "default-scheduler");
    if let Some(context) = object(spec, "securityContext") {
        drop_zero(context, &["supplementalGroups", "sysctls"]);
    }
    default(spec, "terminationGracePeriodSeconds", 30);
    if let Some(overhead) = spec.get_mut("overhead") {
        canonical_list(overhead);
    }
    for volume in items_mut(spec.get_mut("volumes")) {
        fill_volume(volume);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec.get_mut(list)) {
            fill_container(container);
        }
    }
}

fn fill_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|fields| fields.keys().all(|field| field == "name")) {
        set(volume, "emptyDir", json!({}));
    }
    if let Some(path) = volume.get_mut("hostPath") {
        default(path, "type", "");
    }
    if let Some(dir) = volume.get_mut("emptyDir") {
        drop_zero(dir, &["medium"]);
        canonical(dir, "sizeLimit");
    }
    if let Some(image) = volume.get_mut("image") {
        let policy = if tag(text(&image["reference"])) == Some("latest") { "Always" } else { "IfNotPresent" };
        default_text(image, "pullPolicy", policy);
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            default(source, "defaultMode", MODE);
        }
    }
    fill_downward_items(volume.get_mut("downwardAPI"));
    let sources = volume.get_mut("projected").and_then(|projected| projected.get_mut("sources"));
    for source in items_mut(sources) {
        fill_downward_items(source.get_mut("downwardAPI"));
        if let Some(token) = source.get_mut("serviceAccountToken") {
            default(token, "expirationSeconds", 3600);
        }
    }
}

fn fill_downward_items(source: Option<&mut Value>) {
    for item in items_mut(source.and_then(|source| source.get_mut("items"))) {
        fill_references(item);
    }
}

/// `fieldRef` and `resourceFieldRef`, in volumes and in variables.
fn fill_references(of: &mut Value) {
    if let Some(field) = of.get_mut("fieldRef") {
        default_text(field, "apiVersion", "v1");
    }
    if let Some(resource) = of.get_mut("resourceFieldRef") {
        default(resource, "divisor", "0");
        canonical(resource, "divisor");
    }
}

fn fill_container(container: &mut Value) {
    drop_zero(container, CONTAINER_ZEROS);
    let policy = if tag(text(&container["image"])) == Some("latest") { "Always" } else { "IfNotPresent" };
    default_text(container, "imagePullPolicy", policy);
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in items_mut(container.get_mut("ports")) {
        drop_zero(port, &["hostIP", "hostPort", "name"]);
        default_text(port, "protocol", "TCP");
    }
    for mount in items_mut(container.get_mut("volumeMounts")) {
        drop_zero(mount, &["readOnly", "subPath", "subPathExpr"]);
    }
    for source in items_mut(container.get_mut("envFrom")) {
        drop_zero(source, &["prefix"]);
    }
    if let Some(capabilities) = container.get_mut("securityContext").and_then(|context| context.get_mut("capabilities"))
    {
        drop_zero(capabilities, &["add", "drop"]);
    }
    for variable in items_mut(container.get_mut("env")) {
        drop_zero(variable, &["value"]);
        if let Some(from) = variable.get_mut("valueFrom") {
            fill_references(from);
        }
    }
    if let Some(resources) = container.get_mut("resources") {
        drop_zero(resources, &["claims", "limits", "requests"]);
        for list in ["limits", "requests"] {
            if let Some(list) = resources.get_mut(list) {
                canonical_list(list);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            fill_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook));
        fill_http_get(hook.and_then(|hook| hook.get_mut("httpGet")));
    }
}

fn fill_probe(probe: &mut Value) {
    drop_zero(probe, &["initialDelaySeconds"]);
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if number(&probe[field]) == 0 {
            set(probe, field, value);
        }
    }
    fill_http_get(probe.get_mut("httpGet"));
    if let Some(grpc) = probe.get_mut("grpc") {
        default(grpc, "service", "");
    }
}

fn fill_http_get(action: Option<&mut Value>) {
    if let Some(action) = action {
        drop_zero(action, &["host", "httpHeaders"]);
        default_text(action, "path", "/");
        default_text(action, "scheme", "HTTP");
    }
}

/// Longer names are malformed.
const MAX_IMAGE_NAME: usize = 255;

/// The tag of an image: `latest` when it has neither tag nor digest, none when it has only a digest or is malformed.
///
/// Source: kubernetes `pkg/util/parsers/parsers.go`.
fn tag(image: &str) -> Option<&str> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (host, last) = name.rsplit_once('/').unwrap_or(("", name));
    // The registry's host may have upper case letters; repositories have none.
    let path = host.split_once('/').map_or("", |(_, path)| path);
    let repository = last.split_once(':').map_or(last, |(repository, _)| repository);
    let letter = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let plain = |text: &str| {
        text.bytes().all(|b| letter(b) || matches!(b, b'.' | b'_' | b'-'))
            && text.bytes().next().is_none_or(letter)
            && text.bytes().last().is_none_or(letter)
    };
    match last.split_once(':') {
        _ if name.len() > MAX_IMAGE_NAME || repository.is_empty() => None,
        _ if !path.split('/').all(plain) || !plain(repository) || host.starts_with('-') => None,
        Some((_, tag)) => Some(tag),
        None if digest.is_some() => None,
        None => Some("latest"),
    }
}

/// Brings every quantity of a list into the form in which it is written back; CPU is rounded up to thousandths.
pub fn canonical_list(list: &mut Value) {
    let names: Vec<String> = list.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for name in names {
        canonical(list, &name);
        round_up_to_milli(list, &name);
    }
}

/// Brings one quantity into the form in which it is written back. What is no quantity stays, for validation to refuse.
pub fn canonical(parent: &mut Value, field: &str) {
    let text = match &parent[field] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return,
    };
    set(parent, field, quantity::emitted(&text).unwrap_or(text));
}

fn round_up_to_milli(list: &mut Value, name: &str) {
    let Ok(amount) = text(&list[name]).parse::<quantity::Quantity>() else { return };
    // `millis` rounds up; what it gives back differs only when there was something to round.
    let rounded = quantity::Quantity::from_millis(amount.millis());
    if amount.value() < i64::MAX / 1000 && rounded != amount {
        set(list, name, rounded.to_string());
    }
}
