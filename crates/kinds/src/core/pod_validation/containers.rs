//! Containers: names, images, ports, resources.

use std::collections::BTreeSet;

use api::field::Error;
use api::names;
use api::quantity::Quantity;

use super::{Pod, env, handlers, security, volumes};
use crate::place::Place;

pub(super) fn validate(pod: &Pod<'_>, errors: &mut Vec<Error>) {
    let (containers, inits) = (pod.spec.child("containers"), pod.spec.child("initContainers"));
    let mut names = BTreeSet::new();
    if containers.is_empty() {
        errors.push(containers.required(""));
    }
    for container in containers.items() {
        common(&container, pod, errors);
        let name = container.child("name");
        if !names.insert(name.text()) {
            errors.push(Error::duplicate(&name.path, name.text()));
        }
        handlers::validate(&container, pod, errors);
        restart_policy(&container, errors);
    }
    unique_host_ports(containers.items(), &containers, errors);
    for container in inits.items() {
        common(&container, pod, errors);
        let name = container.child("name");
        // Upstream takes two names that are missing for the same one only here and there.
        if names.contains(name.text()) {
            errors.push(Error::duplicate(&name.path, name.text()));
        } else if !name.is_empty() {
            names.insert(name.text());
        }
        // Init containers run one after the other, so that each may use any port; upstream checks each by itself.
        unique_host_ports([container.clone()].into_iter(), &inits, errors);
        restart_policy(&container, errors);
        if container.child("restartPolicy").is("Always") {
            handlers::validate(&container, pod, errors);
        } else {
            handlers::forbid(&container, errors);
        }
    }
}

/// One that says nothing is none; `pod_support` refuses those that are not built.
fn restart_policy(container: &Place<'_>, errors: &mut Vec<Error>) {
    let policy = container.child("restartPolicy");
    if policy.is_set() && policy.is_empty() {
        errors.push(policy.not_supported(&["Always", "Never", "OnFailure"]));
    }
}

pub(super) fn common(container: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    container.child("name").require(names::is_dns1123_label, errors);
    container.child("image").must_be_set(errors);
    container.child("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"], errors);
    ports(&container.child("ports"), errors);
    env::variables(container, errors);
    volumes::mounts(container, pod, errors);
    container.child("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], errors);
    resources(&container.child("resources"), errors);
    resize_policy(&container.child("resizePolicy"), &pod.spec.child("restartPolicy"), errors);
    security::container(&container.child("securityContext"), pod, errors);
}

fn ports(ports: &Place<'_>, errors: &mut Vec<Error>) {
    let mut names_seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.is_empty() {
            let messages = names::is_port_name(name.text());
            if messages.is_empty() && !names_seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
            errors.extend(messages.into_iter().map(|message| name.invalid(message)));
        }
        let (own, host) = (port.child("containerPort"), port.child("hostPort"));
        if own.number() == 0 {
            errors.push(own.required(""));
        } else {
            own.port_number(errors);
        }
        if host.number() != 0 {
            host.port_number(errors);
        }
        port.child("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
    }
}

fn unique_host_ports<'a>(containers: impl Iterator<Item = Place<'a>>, list: &Place<'_>, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.enumerate() {
        for (j, port) in container.child("ports").items().enumerate() {
            let number = port.child("hostPort").number();
            let key = format!("{}/{}/{number}", port.child("protocol").text(), port.child("hostIP").text());
            if number != 0 && !seen.insert(key.clone()) {
                let path = list.path.index(i).child("ports").index(j).child("hostPort");
                errors.push(Error::duplicate(&path, key));
            }
        }
    }
}

/// Quantities and their relation; which resources there are is for `pod_support` to say.
fn resources(resources: &Place<'_>, errors: &mut Vec<Error>) {
    let (limits, requests) = (resources.child("limits"), resources.child("requests"));
    resource_list(&limits, errors);
    for (name, request) in requests.entries() {
        resource_name(name, &request, errors);
        let amount = resource_quantity(name, &request, errors);
        let limit = limits.child(name);
        let most = limit.is_set().then(|| Quantity::from_json(limit.value));
        let complaint = match (amount, most) {
            (Some(amount), Some(Ok(most))) if is_extended(name) && amount != most => {
                Error::invalid(&requests.path, amount.to_string(), format!("must be equal to {name} limit of {most}"))
            }
            (Some(amount), Some(Ok(most))) if !is_extended(name) && amount > most => {
                let detail = format!("must be less than or equal to {name} limit of {most}");
                Error::invalid(&requests.path, amount.to_string(), detail)
            }
            (_, None) if is_extended(name) => limits.required("Limit must be set for non overcommitable resources"),
            _ => continue,
        };
        errors.push(complaint);
    }
}

/// The names and amounts of a list of resources.
pub fn resource_list(list: &Place<'_>, errors: &mut Vec<Error>) {
    for (name, entry) in list.entries() {
        resource_name(name, &entry, errors);
        resource_quantity(name, &entry, errors);
    }
}

fn resize_policy(policies: &Place<'_>, restart: &Place<'_>, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for policy in policies.items() {
        // Upstream's paths of what is wrong inside are those of the list.
        let at = |field: &str| Place::new(policy.child(field).value, policies.path.clone());
        let (resource, policy_of) = (at("resourceName"), at("restartPolicy"));
        if !seen.insert(resource.text()) {
            errors.push(Error::duplicate(&policy.path, resource.text()));
        }
        resource.one_of(&["cpu", "memory"], errors);
        policy_of.one_of(&["NotRequired", "RestartContainer"], errors);
        if restart.is("Never") && !policy_of.is("NotRequired") {
            errors.push(policy_of.invalid("must be 'NotRequired' when pod `restartPolicy` is 'Never'"));
        }
    }
}

/// Whether a resource is none of Kubernetes' own: a count of something that a node has.
///
/// Source: kubernetes `pkg/apis/core/v1/helper/helpers.go`, `IsExtendedResourceName`.
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

fn resource_quantity(name: &str, place: &Place<'_>, errors: &mut Vec<Error>) -> Option<Quantity> {
    let amount = quantity(place, errors);
    if let Some(amount) = amount.filter(|amount| is_extended(name) && amount.millis() % 1000 != 0) {
        errors.push(Error::invalid(&place.path, amount.to_string(), "must be an integer"));
    }
    amount
}

/// Complains of a resource that containers cannot have.
pub fn resource_name(name: &str, place: &Place<'_>, errors: &mut Vec<Error>) {
    let messages = names::is_qualified_name(name);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        if messages.is_empty() {
            errors.push(Error::invalid(&place.path, name, "must be a standard resource type or fully qualified"));
        }
        errors.push(Error::invalid(&place.path, name, "must be a standard resource for containers"));
    }
    errors.extend(messages.into_iter().map(|message| Error::invalid(&place.path, name, message)));
}

/// The amount, when it is one.
pub fn quantity(place: &Place<'_>, errors: &mut Vec<Error>) -> Option<Quantity> {
    match Quantity::from_json(place.value) {
        Ok(amount) => {
            if amount.is_negative() {
                let detail = "must be greater than or equal to 0";
                errors.push(Error::invalid(&place.path, amount.to_string(), detail));
            }
            Some(amount)
        }
        Err(error) => {
            errors.push(place.invalid(error.to_string()));
            None
        }
    }
}
