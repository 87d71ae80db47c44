//! Environment variables and the downward API.

use api::field::Error;
use api::names;
use api::quantity::Quantity;

use crate::place::Place;

/// The fields that the downward API offers as variables, beside single labels and annotations.
const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn variables(container: &Place<'_>, errors: &mut Vec<Error>) {
    for variable in container.child("env").items() {
        variable.child("name").require(names::is_env_var_name, errors);
        let from = variable.child("valueFrom");
        if from.is_set() {
            value_from(&from, !variable.child("value").is_empty(), errors);
        }
    }
    sources(&container.child("envFrom"), errors);
}

fn value_from(from: &Place<'_>, has_value: bool, errors: &mut Vec<Error>) {
    let (field, resource) = (from.child("fieldRef"), from.child("resourceFieldRef"));
    let (config, secret) = (from.child("configMapKeyRef"), from.child("secretKeyRef"));
    if field.is_set() {
        field_reference(&field, VARIABLE_FIELDS, errors);
    }
    if resource.is_set() {
        resource_reference(&resource, false, errors);
    }
    for selector in [&config, &secret].into_iter().filter(|selector| selector.is_set()) {
        selector.child("name").keep(names::is_dns1123_subdomain, errors);
        selector.child("key").require(names::is_config_map_key, errors);
    }
    let sources = [&field, &resource, &config, &secret, &from.child("fileKeyRef")];
    let problem = match sources.into_iter().filter(|source| source.is_set()).count() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if has_value => "may not be specified when `value` is not empty",
        2.. => "may not have more than one field specified at a time",
        _ => return,
    };
    errors.push(Error::invalid(&from.path, "", problem));
}

/// `offered` are the fields without a subscript.
pub(super) fn field_reference(reference: &Place<'_>, offered: &[&str], errors: &mut Vec<Error>) {
    let (version, path) = (reference.child("apiVersion"), reference.child("fieldPath"));
    if let Some(missing) = [&version, &path].into_iter().find(|field| field.is_empty()) {
        return errors.push(missing.required(""));
    }
    if !version.is("v1") {
        let why = format!("unsupported pod version: {}", version.text());
        return errors.push(path.invalid(format!("error converting fieldPath: {why}")));
    }
    match subscripted(path.text()) {
        Some((of, key)) => {
            let rule = match of {
                "metadata.annotations" => names::is_qualified_name(&key.to_lowercase()),
                "metadata.labels" => names::is_qualified_name(key),
                _ => return errors.push(inconvertible(&path, "does not support subscript")),
            };
            errors.extend(rule.into_iter().map(|message| Error::invalid(&reference.path, key, message)));
        }
        None if !is_convertible(path.text()) => errors.push(inconvertible(&path, "not supported")),
        None if !offered.contains(&path.text()) => errors.push(path.not_supported(offered)),
        None => {}
    }
}

/// Source: kubernetes `pkg/apis/core/pods/helpers.go`, `ConvertDownwardAPIFieldLabel`.
fn is_convertible(path: &str) -> bool {
    matches!(
        path,
        "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase"
    ) || VARIABLE_FIELDS.contains(&path)
}

fn inconvertible(path: &Place<'_>, why: &str) -> Error {
    path.invalid(format!("error converting fieldPath: field label {why}: {}", path.text()))
}

/// `metadata.labels['key']` as path and key.
fn subscripted(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['").filter(|(of, _)| !of.is_empty())
}

/// In a volume the container has to be named; a variable's is its own.
pub(super) fn resource_reference(reference: &Place<'_>, in_volume: bool, errors: &mut Vec<Error>) {
    let container = reference.child("containerName");
    let (resource, divisor) = (reference.child("resource"), reference.child("divisor"));
    let huge = resource.text().split_once('.').is_some_and(|(_, name)| name.starts_with("hugepages-"));
    if in_volume && container.is_empty() {
        errors.push(container.required(""));
    } else if resource.is_empty() {
        errors.push(resource.required(""));
    } else if !RESOURCES.contains(&resource.text()) && !huge {
        errors.push(resource.not_supported(RESOURCES));
    }
    let amount = match Quantity::from_json(divisor.value) {
        Ok(amount) => amount,
        Err(error) => return errors.push(divisor.invalid(error.to_string())),
    };
    let written = amount.to_string();
    let wrong = |detail: String| Error::invalid(&divisor.path, resource.text(), detail);
    let bytes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    match resource.text() {
        _ if amount.is_zero() => {}
        "limits.cpu" | "requests.cpu" if !["1m", "1"].contains(&written.as_str()) => {
            errors.push(wrong("only divisor's values 1m and 1 are supported with the cpu resource".to_owned()));
        }
        "limits.memory" | "requests.memory" if !bytes.contains(&written.as_str()) => {
            let all = bytes.join(", ");
            errors.push(wrong(format!("only divisor's values {all} are supported with the memory resource")));
        }
        _ => {}
    }
}

fn sources(list: &Place<'_>, errors: &mut Vec<Error>) {
    for source in list.items() {
        let prefix = source.child("prefix");
        if !prefix.is_empty() {
            prefix.keep(names::is_env_var_name, errors);
        }
        let set = ["configMapRef", "secretRef"].map(|kind| source.child(kind)).into_iter().filter(Place::is_set);
        let mut count = 0;
        for reference in set {
            count += 1;
            reference.child("name").require(names::is_dns1123_subdomain, errors);
        }
        match count {
            1 => {}
            0 => errors.push(Error::invalid(&list.path, "", "must specify one of: `configMapRef` or `secretRef`")),
            _ => errors.push(Error::invalid(&list.path, "", "may not have more than one field specified at a time")),
        }
    }
}
