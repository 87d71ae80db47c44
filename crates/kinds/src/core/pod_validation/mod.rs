//! What is wrong with a pod, or with a template of pods.
//!
//! Source: kubernetes `pkg/apis/core/validation/validation.go`, `ValidatePodSpec` and around it. Fields that are not
//! built are refused by `pod_support` and not looked into here.

use std::collections::BTreeMap;

use api::field::Error;
use api::names;
use serde_json::Value;

use crate::core::pod_support;
use crate::core::service_validation::labels;
use crate::place::Place;

mod containers;
mod env;
mod ephemeral;
mod handlers;
mod resize;
mod scheduling;
mod security;
mod spreading;
mod status;
mod update;
mod volumes;

pub use containers::{is_extended, quantity, resource_list, resource_name};
pub use scheduling::tolerations;
pub use status::validate as validate_status;

/// The sources of the volumes that have nothing wrong with them, by name.
type Volumes<'a> = BTreeMap<&'a str, Place<'a>>;

/// What parts of a pod need to know of the rest of it.
struct Pod<'a> {
    spec: Place<'a>,
    volumes: Volumes<'a>,
    /// Every name of a volume, whatever is wrong with it, for suggestions.
    volume_names: Vec<&'a str>,
}

impl Pod<'_> {
    fn grace(&self) -> Option<i64> {
        self.spec.child("terminationGracePeriodSeconds").value.as_i64()
    }
}

/// A pod that is created, or replaces `old`.
pub fn validate(pod: &Value, old: Option<&Value>) -> Vec<Error> {
    let (spec, mut errors) = (Place::root(pod).child("spec"), whole(pod));
    match old {
        Some(old) => update::validate(&spec, old, &mut errors),
        None => {
            let node = spec.child("nodeName");
            if !node.is_empty() && !spec.child("schedulingGates").is_empty() {
                errors.push(node.forbidden("cannot be set until all schedulingGates have been cleared"));
            }
            if !spec.child("ephemeralContainers").is_empty() {
                errors.push(spec.child("ephemeralContainers").forbidden("cannot be set on create"));
            }
        }
    }
    errors
}

/// A pod that gets further ephemeral containers.
pub fn validate_ephemeral(pod: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = whole(pod);
    let list = Place::root(pod).child("spec").child("ephemeralContainers");
    ephemeral::update(&list, old.unwrap_or(&Value::Null), &mut errors);
    errors
}

/// A pod whose resources change.
pub fn validate_resize(pod: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = whole(pod);
    resize::validate(pod, old.unwrap_or(&Value::Null), &mut errors);
    errors
}

/// What is wrong with a pod by itself.
fn whole(pod: &Value) -> Vec<Error> {
    let root = Place::root(pod);
    let (metadata, spec) = (root.child("metadata"), root.child("spec"));
    let mut errors = Vec::new();
    annotations(&metadata.child("annotations"), &spec, &mut errors);
    errors.extend(pod_spec(&spec, true));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.child(list).items() {
            let image = container.child("image");
            if image.text().trim() != image.text() {
                errors.push(image.invalid("must not have leading or trailing whitespace"));
            }
        }
    }
    errors
}

/// A template, as in a Deployment.
pub fn template(template: &Place<'_>, errors: &mut Vec<Error>) {
    let metadata = template.child("metadata");
    // Upstream's paths leave `metadata` out here.
    let at = |field: &str| Place::new(metadata.child(field).value, template.path.child(field));
    labels(&at("labels"), errors);
    annotation_keys(&at("annotations"), errors);
    annotations(&at("annotations"), &template.child("spec"), errors);
    errors.extend(pod_spec(&template.child("spec"), false));
    let ephemeral = template.child("spec").child("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.push(ephemeral.forbidden("ephemeral containers not allowed in pod template"));
    }
}

/// Source: apimachinery `pkg/api/validation/objectmeta.go`, `ValidateAnnotations`.
fn annotation_keys(annotations: &Place<'_>, errors: &mut Vec<Error>) {
    const MAX: usize = 256 * 1024;
    let mut size = 0;
    for (key, value) in annotations.entries() {
        size += key.len() + value.text().len();
        // The rule is that for labels' keys, but for the case of letters.
        let messages = names::is_qualified_name(&key.to_lowercase());
        errors.extend(messages.into_iter().map(|message| Error::invalid(&annotations.path, key, message)));
    }
    if size > MAX {
        errors.push(Error::too_long(&annotations.path, MAX));
    }
}

fn annotations(annotations: &Place<'_>, spec: &Place<'_>, errors: &mut Vec<Error>) {
    for (key, value) in annotations.entries() {
        match key {
            "kubernetes.io/config.mirror" if spec.child("nodeName").is_empty() => {
                errors.push(value.invalid("must set spec.nodeName if mirror pod annotation is set"));
            }
            "controller.kubernetes.io/pod-deletion-cost" if !is_deletion_cost(value.text()) => {
                errors.push(value.invalid("must be a 32bit integer"));
            }
            _ => {}
        }
    }
}

/// Upstream refuses forms that read as the same number: `+1` and `01`.
fn is_deletion_cost(text: &str) -> bool {
    text.parse::<i32>().is_ok_and(|cost| cost.to_string() == text)
}

/// The specification of a pod, or of a template when `is_pod` is false.
fn pod_spec(spec: &Place<'_>, is_pod: bool) -> Vec<Error> {
    let mut errors = Vec::new();
    let grace = spec.child("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.push(grace.required(""));
    }
    let pod = Pod {
        spec: spec.clone(),
        volumes: volumes::validate(&spec.child("volumes"), &mut errors),
        volume_names: spec.child("volumes").items().map(|volume| volume.child("name").text()).collect(),
    };
    containers::validate(&pod, &mut errors);
    ephemeral::validate(&pod, &mut errors);
    host_network(spec, is_pod, &mut errors);
    spec.child("restartPolicy").one_of(&["Always", "OnFailure", "Never"], &mut errors);
    spec.child("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], &mut errors);
    labels(&spec.child("nodeSelector"), &mut errors);
    security::pod(spec, &mut errors);
    scheduling::affinity(&spec.child("affinity"), &mut errors);
    spreading::affinity(&spec.child("affinity"), &mut errors);
    dns(spec, &mut errors);
    for gate in spec.child("readinessGates").items() {
        gate.child("conditionType").keep(names::is_qualified_name, &mut errors);
    }
    scheduling::gates(&spec.child("schedulingGates"), &mut errors);
    spreading::constraints(&spec.child("topologySpreadConstraints"), &mut errors);
    identity(spec, is_pod, &mut errors);
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.is_set() {
        let max = i64::from(i32::MAX);
        errors
            .extend(names::is_in_range(deadline.number(), 1, max).into_iter().map(|message| deadline.invalid(message)));
    }
    for field in ["hostname", "subdomain"] {
        if !spec.child(field).is_empty() {
            spec.child(field).keep(names::is_dns1123_label, &mut errors);
        }
    }
    scheduling::tolerations(&spec.child("tolerations"), &mut errors);
    for alias in spec.child("hostAliases").items() {
        alias.child("ip").keep(names::is_ip_for_legacy_field, &mut errors);
        for name in alias.child("hostnames").items() {
            name.keep(names::is_dns1123_subdomain, &mut errors);
        }
    }
    for class in ["priorityClassName", "runtimeClassName"] {
        if !spec.child(class).is_empty() {
            spec.child(class).keep(names::is_dns1123_subdomain, &mut errors);
        }
    }
    // Upstream looks at an overhead as at the limits of a container.
    let overhead = spec.child("overhead");
    containers::resource_list(&Place::new(overhead.value, overhead.path.child("limits")), &mut errors);
    spec.child("preemptionPolicy").if_set_one_of(&["PreemptLowerPriority", "Never"], &mut errors);
    let os = spec.child("os");
    if os.is_set() && os.child("name").is_empty() {
        errors.push(os.child("name").required(""));
    }
    errors.extend(pod_support::check(spec));
    errors
}

fn host_network(spec: &Place<'_>, is_pod: bool, errors: &mut Vec<Error>) {
    if !spec.child("hostNetwork").is_true() {
        return;
    }
    for port in spec.child("containers").items().flat_map(|container| container.child("ports").items()) {
        let (host, own) = (port.child("hostPort"), port.child("containerPort").number());
        if (is_pod || host.number() != 0) && host.number() != own {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.push(Error::invalid(&host.path, host.number(), detail));
        }
    }
}

fn identity(spec: &Place<'_>, is_pod: bool, errors: &mut Vec<Error>) {
    let account = spec.child("serviceAccountName");
    if !account.is_empty() {
        account.keep(names::is_dns1123_subdomain, errors);
    }
    let alias = spec.child("serviceAccount");
    if alias.text() != account.text() {
        let path = spec.path.child("deprecatedServiceAccount");
        let detail = format!("must be the same as serviceAccountName: {:?}", account.text());
        errors.push(Error::invalid(&path, alias.text(), detail));
    }
    let node = spec.child("nodeName");
    if !node.is_empty() {
        node.keep(names::is_dns1123_subdomain, errors);
    }
    let grace = spec.child("terminationGracePeriodSeconds");
    if is_pod {
        grace.not_negative(errors);
    }
    if is_pod && account.is_empty() {
        let sources =
            spec.child("volumes").items().flat_map(|volume| volume.child("projected").child("sources").items());
        let tokens = sources.map(|source| source.child("serviceAccountToken")).filter(Place::is_set);
        errors.extend(tokens.map(|token| token.forbidden("must not be specified when serviceAccountName is not set")));
    }
}

/// Limits of the resolver in the C library.
fn dns(spec: &Place<'_>, errors: &mut Vec<Error>) {
    const MAX_NAMESERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_CHARACTERS: usize = 2048;
    let config = spec.child("dnsConfig");
    let (servers, searches) = (config.child("nameservers"), config.child("searches"));
    if spec.child("dnsPolicy").is("None") {
        if !config.is_set() {
            return errors.push(config.required("must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.push(servers.required(detail));
        }
    }
    if servers.len() > MAX_NAMESERVERS {
        errors.push(servers.invalid(format!("must not have more than {MAX_NAMESERVERS} nameservers")));
    }
    for server in servers.items() {
        server.keep(names::is_ip_for_legacy_field, errors);
    }
    if searches.len() > MAX_SEARCHES {
        errors.push(searches.invalid(format!("must not have more than {MAX_SEARCHES} search paths")));
    }
    let length: usize = searches.items().map(|search| search.text().len() + 1).sum();
    if length > MAX_SEARCH_CHARACTERS + 1 {
        errors.push(searches.invalid(format!(
            "must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list"
        )));
    }
    for search in searches.items() {
        let name = search.text().strip_suffix('.').unwrap_or(search.text());
        if !search.is(".") {
            let messages = search_domain(name).into_iter();
            errors.extend(messages.map(|message| Error::invalid(&search.path, name, message)));
        }
    }
    for option in config.child("options").items() {
        if option.child("name").is_empty() {
            errors.push(option.required("must not be empty"));
        }
    }
}

/// A DNS name in which underscores are allowed.
///
/// Source: apimachinery `pkg/util/validation/validation.go`, `IsDNS1123SubdomainWithUnderscore`.
fn search_domain(name: &str) -> names::Messages {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        label.starts_with(alphanumeric)
            && label.ends_with(alphanumeric)
            && label.chars().all(|c| alphanumeric(c) || c == '-' || c == '_')
    };
    let mut messages = names::Messages::new();
    if name.len() > 253 {
        messages.push(names::max_len_error(253));
    }
    if !name.split('.').all(label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or \
                       '.', and must start and end with an alphanumeric character";
        messages.push(names::regex_error(message, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    messages
}
