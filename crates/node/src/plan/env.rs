//! A container's environment: sources, references between variables, service variables and the downward API.
//!
//! Sources: kubelet_pods.go, `makeEnvironmentVariables`; envvars/envvars.go; third_party/forked/golang/expansion;
//! fieldpath/fieldpath.go; api/v1/resource/helpers.go, `ExtractContainerResourceValue`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, PodSpec, ResourceFieldSelector, Secret, Service,
};

use crate::resources::{self, Amounts, Side};

/// Where values come from. A name that does not exist is `None`.
pub trait Lookup {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>>;
    fn secret(&self, name: &str) -> Option<Arc<Secret>>;
}

/// What the downward API tells beside the pod itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Stands in for limits that are not set.
    pub allocatable: Amounts,
}

/// The variables that the pod asks for, by name, services included.
///
/// # Errors
/// With upstream's message, fit for `CreateContainerConfigError`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &[Service],
    from: &dyn Lookup,
    facts: &Facts,
) -> Result<BTreeMap<String, String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().is_none_or(|spec| spec.enable_service_links != Some(false));
    let mut service_env = service_variables(services, namespace, links);
    let mut own = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(wanted) = &source.config_map_ref {
            match from.config_map(&wanted.name) {
                Some(found) => {
                    own.extend(found.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())))
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", wanted.name)),
            }
        } else if let Some(wanted) = &source.secret_ref {
            match from.secret(&wanted.name) {
                Some(found) => {
                    own.extend(found.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), text(&v.0))))
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", wanted.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let literal = variable.value.as_deref().unwrap_or_default();
        let value = if !literal.is_empty() {
            Some(expand(literal, |name| own.get(name).or_else(|| service_env.get(name)).cloned()))
        } else if let Some(source) = &variable.value_from {
            if let Some(field) = &source.field_ref {
                Some(pod_field(pod, field, facts)?)
            } else if let Some(resource) = &source.resource_field_ref {
                Some(resource_field(pod, Some(container), resource, facts)?)
            } else if let Some(key) = &source.config_map_key_ref {
                let found = from.config_map(&key.name);
                key_of(
                    found
                        .as_deref()
                        .map(|map| map.data.iter().flatten().find(|(k, _)| **k == key.key).map(|(_, v)| v.clone())),
                    key.optional,
                    || format!("configmap {:?} not found", key.name),
                    || format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name),
                )?
            } else if let Some(key) = &source.secret_key_ref {
                let found = from.secret(&key.name);
                key_of(
                    found.as_deref().map(|secret| {
                        secret.data.iter().flatten().find(|(k, _)| **k == key.key).map(|(_, v)| text(&v.0))
                    }),
                    key.optional,
                    || format!("secret {:?} not found", key.name),
                    || format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name),
                )?
            } else {
                return Err(format!(
                    "env[{}].valueFrom: this source is not supported, use fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef",
                    variable.name
                ));
            }
        } else {
            Some(String::new())
        };
        if let Some(value) = value {
            own.insert(variable.name.clone(), value);
        }
    }
    service_env.extend(own);
    if let Some((name, _)) = service_env.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(format!("environment variable {name:?} contains a NUL byte"));
    }
    Ok(service_env)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `found` is the object's key, when the object and the key exist.
fn key_of(
    found: Option<Option<String>>,
    optional: Option<bool>,
    no_object: impl Fn() -> String,
    no_key: impl Fn() -> String,
) -> Result<Option<String>, String> {
    match found {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(no_key()),
        None => Err(no_object()),
    }
}

/// Replaces `$(NAME)` by what `lookup` answers and `$$` by `$`; an unknown name stays as it is written.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            out.push_str(&lookup(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// The Docker-compatible variables of a namespace's services; `kubernetes` of `default` is there for all.
pub fn service_variables(services: &[Service], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let has_ip = |service: &&Service| {
        let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        !ip.is_empty() && ip != "None"
    };
    let field = |text: &Option<String>| text.clone().unwrap_or_default();
    let is_master = |service: &Service| {
        field(&service.metadata.namespace) == "default" && field(&service.metadata.name) == "kubernetes"
    };
    let of_namespace = |service: &&Service| links && field(&service.metadata.namespace) == namespace;
    let chosen = services.iter().filter(has_ip).filter(|service| is_master(service) || of_namespace(service));
    // A service called `kubernetes` in the pod's own namespace wins over the cluster's.
    let (masters, own): (Vec<&Service>, Vec<&Service>) = chosen.partition(|service| is_master(service));
    for service in masters.into_iter().chain(own) {
        add_service(&mut all, service);
    }
    all
}

fn add_service(all: &mut BTreeMap<String, String>, service: &Service) {
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = upper(service.metadata.name.as_deref().unwrap_or_default());
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.clone().unwrap_or_default();
    all.insert(format!("{prefix}_SERVICE_HOST"), ip.clone());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port.to_string();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let address = if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") };
        let url = format!("{}://{address}", protocol.to_lowercase());
        if index == 0 {
            all.insert(format!("{prefix}_SERVICE_PORT"), number.clone());
            all.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            all.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), number.clone());
        }
        let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        all.insert(link.clone(), url);
        all.insert(format!("{link}_PROTO"), protocol.to_lowercase());
        all.insert(format!("{link}_PORT"), number);
        all.insert(format!("{link}_ADDR"), ip.clone());
    }
}

/// A field of the pod as text: what `fieldRef` may name in variables and in volumes.
///
/// # Errors
/// For a path that there is not.
pub fn pod_field(pod: &Pod, field: &ObjectFieldSelector, facts: &Facts) -> Result<String, String> {
    let path = field.field_path.as_str();
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.annotations" => &meta.annotations,
            "metadata.labels" => &meta.labels,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => quoted_map(meta.labels.as_ref()),
        "metadata.annotations" => quoted_map(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `key="value"` a line, sorted, as Go quotes. Source: fieldpath.go, `FormatMap`.
fn quoted_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// As Go's `strconv.Quote`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's request or limit as a whole number of `divisor`s, rounded up.
///
/// # Errors
/// For a container or resource that there is not.
pub fn resource_field(
    pod: &Pod,
    own: Option<&Container>,
    field: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match named {
        None => own.ok_or_else(|| "resourceFieldRef.containerName is required in a volume".to_owned())?,
        Some(name) => pod
            .spec
            .as_ref()
            .and_then(|spec| crate::pod_machine::container_of(spec, name))
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let (side, name) = match field.resource.split_once('.') {
        Some(("limits", name)) => (Side::Limits, name),
        Some(("requests", name)) => (Side::Requests, name),
        _ => return Err(format!("unsupported container resource : {}", field.resource)),
    };
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known {
        return Err(format!("unsupported container resource : {}", field.resource));
    }
    let set = resources::of_container(container, side).get(name).copied();
    let fallback = (side == Side::Limits).then(|| facts.allocatable.get(name).copied()).flatten();
    let amount = set.or(fallback).unwrap_or(Quantity::ZERO);
    let divisor =
        field.divisor.as_ref().and_then(|text| text.0.parse::<Quantity>().ok()).filter(|divisor| !divisor.is_zero());
    let divisor = divisor.unwrap_or_else(|| Quantity::from_millis(1000));
    let (amount, divisor) =
        if name == "cpu" { (amount.millis(), divisor.millis()) } else { (amount.value(), divisor.value()) };
    Ok((i128::from(amount) + i128::from(divisor) - 1).div_euclid(i128::from(divisor.max(1))).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Sources;

    impl Lookup for Sources {
        fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
            let found = json!({"metadata": {"name": name}, "data": {"color": "red"}});
            (name == "settings").then(|| Arc::new(serde_json::from_value(found).unwrap()))
        }

        fn secret(&self, name: &str) -> Option<Arc<Secret>> {
            let found = json!({"metadata": {"name": name}, "data": {"key": "aHVudGVyMg=="}});
            (name == "door").then(|| Arc::new(serde_json::from_value(found).unwrap()))
        }
    }

    fn check(container: Value, expected: Result<&str, &str>) {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": [container], "enableServiceLinks": false, "serviceAccountName": "robot"},
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]},
        }))
        .unwrap();
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".to_owned()],
            host_ips: vec!["192.0.2.1".to_owned()],
            allocatable: Amounts::from([("cpu".to_owned(), "2500m".parse().unwrap())]),
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let found = environment(&pod, container, &[service], &Sources, &facts).map(|all| {
            let shown = all.iter().filter(|(name, _)| !name.starts_with("KUBERNETES_"));
            shown.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn later_variables_see_earlier_ones() {
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}], "env": [
                {"name": "A", "value": "$(P_color)-$(NOPE)-$$(A)"},
                {"name": "B", "value": "$(A)$(KUBERNETES_SERVICE_HOST)"},
            ]}),
            Ok("A=red-$(NOPE)-$(A) B=red-$(NOPE)-$(A)10.96.0.1 P_color=red"),
        );
    }

    #[test]
    fn values_come_from_everywhere() {
        check(
            json!({"resources": {"requests": {"memory": "100Mi"}}, "env": [
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['b']"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "door", "key": "key"}}},
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "key", "optional": true}}},
            ]}),
            Ok("CPU=3 IP=10.0.0.1 L=2 MEM=100 S=hunter2"),
        );
    }

    #[test]
    fn missing_sources_are_named() {
        let check_source =
            |source: Value, expected| check(json!({"env": [{"name": "A", "valueFrom": source}]}), Err(expected));
        check_source(json!({"secretKeyRef": {"name": "none", "key": "k"}}), "secret \"none\" not found");
        check_source(json!({"secretKeyRef": {"name": "door", "key": "k"}}), "couldn't find key k in Secret shop/door");
        check_source(
            json!({"configMapKeyRef": {"name": "settings", "key": "k"}}),
            "couldn't find key k in ConfigMap shop/settings",
        );
        check(json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), Err("configmap \"none\" not found"));
    }

    #[test]
    fn services_appear_in_dockers_form() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "red-is", "namespace": "shop"},
            "spec": {"clusterIP": "10.0.0.11", "ports": [{"port": 6379, "protocol": "TCP"}]},
        }))
        .unwrap();
        let all = service_variables(&[service], "shop", true);
        let shown: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "RED_IS_PORT=tcp://10.0.0.11:6379",
                "RED_IS_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "RED_IS_PORT_6379_TCP_ADDR=10.0.0.11",
                "RED_IS_PORT_6379_TCP_PORT=6379",
                "RED_IS_PORT_6379_TCP_PROTO=tcp",
                "RED_IS_SERVICE_HOST=10.0.0.11",
                "RED_IS_SERVICE_PORT=6379",
            ]
        );
    }

    #[test]
    fn maps_are_quoted_and_sorted() {
        let map = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "x\"\n".to_owned())]);
        assert_eq!(quoted_map(Some(&map)), "a=\"x\\\"\\n\"\nb=\"2\"");
    }
}
