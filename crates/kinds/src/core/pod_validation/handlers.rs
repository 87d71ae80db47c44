//! Probes and lifecycle hooks.

use api::field::Error;
use api::names;

use super::Pod;
use crate::place::Place;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

pub(super) fn validate(container: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    lifecycle(&container.child("lifecycle"), pod, errors);
    for kind in PROBES {
        let place = container.child(kind);
        if place.is_set() {
            probe(&place, kind, pod, errors);
        }
    }
}

/// Init containers run to their end, so that there is nothing to probe; sidecars apart.
pub(super) fn forbid(container: &Place<'_>, errors: &mut Vec<Error>) {
    for field in ["lifecycle"].into_iter().chain(PROBES) {
        let place = container.child(field);
        if place.is_set() {
            errors.push(place.forbidden("may not be set for init containers without restartPolicy=Always"));
        }
    }
}

fn probe(probe: &Place<'_>, kind: &str, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], pod, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.child(field).not_negative(errors);
    }
    let grace = probe.child("terminationGracePeriodSeconds");
    if grace.is_set() && grace.number() <= 0 {
        errors.push(grace.invalid("must be greater than 0"));
    }
    let successes = probe.child("successThreshold");
    if kind == "readinessProbe" {
        if grace.is_set() {
            errors.push(grace.invalid("must not be set for readinessProbes"));
        }
    } else if successes.number() != 1 {
        errors.push(successes.invalid("must be 1"));
    }
}

fn lifecycle(lifecycle: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.child(hook);
        if hook.is_set() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], pod, errors);
        }
    }
}

fn handler(of: &Place<'_>, kinds: &[&str], pod: &Pod<'_>, errors: &mut Vec<Error>) {
    let set: Vec<_> = kinds.iter().map(|&kind| (kind, of.child(kind))).filter(|(_, action)| action.is_set()).collect();
    let Some(((kind, action), more)) = set.split_first() else {
        return errors.push(of.required("must specify a handler type"));
    };
    match *kind {
        "exec" => action.child("command").must_be_set(errors),
        "httpGet" => http_get(action, errors),
        "tcpSocket" => action.child("port").port(errors),
        "grpc" => action.child("port").port_number(errors),
        _ => sleep(action, pod, errors),
    }
    errors.extend(more.iter().map(|(_, other)| other.forbidden("may not specify more than 1 handler type")));
}

fn http_get(action: &Place<'_>, errors: &mut Vec<Error>) {
    action.child("path").must_be_set(errors);
    action.child("port").port(errors);
    action.child("scheme").if_set_one_of(&["HTTP", "HTTPS"], errors);
    for header in action.child("httpHeaders").items() {
        let name = header.child("name").text();
        let path = action.path.child("httpHeaders");
        errors.extend(names::is_http_header_name(name).into_iter().map(|message| Error::invalid(&path, name, message)));
    }
}

fn sleep(action: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    let seconds = action.child("seconds").number();
    if let Some(grace) = pod.grace()
        && !(0..=grace).contains(&seconds)
    {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(Error::invalid(&action.path, seconds, detail));
    }
}
