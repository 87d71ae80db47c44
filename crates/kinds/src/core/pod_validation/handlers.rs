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
    let signal = lifecycle.child("stopSignal");
    if !signal.is_set() {
        return;
    }
    if !pod.spec.child("os").is_set() {
        errors.push(signal.forbidden("may not be set for containers with empty `spec.os.name`"));
    } else {
        signal.if_set_one_of(&SIGNALS, errors);
    }
}

/// Signals that Linux has, the real-time ones counted from either end.
#[rustfmt::skip]
const SIGNALS: [&str; 65] = [
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO",
    "SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX", "SIGRTMAX-1", "SIGRTMAX-10",
    "SIGRTMAX-11", "SIGRTMAX-12", "SIGRTMAX-13", "SIGRTMAX-14", "SIGRTMAX-2", "SIGRTMAX-3", "SIGRTMAX-4", "SIGRTMAX-5",
    "SIGRTMAX-6", "SIGRTMAX-7", "SIGRTMAX-8", "SIGRTMAX-9", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+10", "SIGRTMIN+11",
    "SIGRTMIN+12", "SIGRTMIN+13", "SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5",
    "SIGRTMIN+6", "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM",
    "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU",
    "SIGXFSZ",
];

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
