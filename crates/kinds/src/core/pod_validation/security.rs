//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use api::field::Error;
use api::names;

use super::Pod;
use super::volumes::descending_path;
use crate::place::Place;

pub(super) fn container(context: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    for field in ["runAsUser", "runAsGroup"] {
        id(&context.child(field), errors);
    }
    let proc_mount = context.child("procMount");
    proc_mount.if_set_one_of(&["Default", "Unmasked"], errors);
    let host_users = pod.spec.child("hostUsers").value.as_bool() != Some(false);
    if host_users && proc_mount.is("Unmasked") {
        errors.push(proc_mount.invalid("`hostUsers` must be false to use `Unmasked`"));
    }
    seccomp(&context.child("seccompProfile"), errors);
    if context.child("allowPrivilegeEscalation").value.as_bool() == Some(false) {
        let mut conflict = |with: &str| {
            errors.push(context.invalid(format!("cannot set `allowPrivilegeEscalation` to false and {with}")));
        };
        if context.child("privileged").is_true() {
            conflict("`privileged` to true");
        }
        for capability in context.child("capabilities").child("add").items() {
            if matches!(capability.text(), "CAP_SYS_ADMIN" | "SYS_ADMIN") {
                conflict(&format!("`capabilities.Add` {}", capability.text()));
            }
        }
    }
}

fn id(id: &Place<'_>, errors: &mut Vec<Error>) {
    if id.is_set() {
        errors.extend(names::is_user_id(id.number()).into_iter().map(|message| id.invalid(message)));
    }
}

pub(super) fn pod(spec: &Place<'_>, errors: &mut Vec<Error>) {
    let context = spec.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&context.child(field), errors);
    }
    for group in context.child("supplementalGroups").items() {
        id(&group, errors);
    }
    sysctls(&context.child("sysctls"), spec, errors);
    context.child("fsGroupChangePolicy").if_set_one_of(&["Always", "OnRootMismatch"], errors);
    seccomp(&context.child("seccompProfile"), errors);
    context.child("seLinuxChangePolicy").if_set_one_of(&["MountOption", "Recursive"], errors);
    context.child("supplementalGroupsPolicy").if_set_one_of(&["Merge", "Strict"], errors);
    if spec.child("hostPID").is_true() && spec.child("shareProcessNamespace").is_true() {
        let share = spec.child("shareProcessNamespace");
        errors.push(share.invalid("ShareProcessNamespace and HostPID cannot both be enabled"));
    }
}

fn seccomp(profile: &Place<'_>, errors: &mut Vec<Error>) {
    if !profile.is_set() {
        return;
    }
    let (kind, file) = (profile.child("type"), profile.child("localhostProfile"));
    if kind.is_empty() {
        errors.push(kind.required("type is required when seccompProfile is set"));
    }
    if !kind.is_empty() {
        kind.if_set_one_of(&["Localhost", "RuntimeDefault", "Unconfined"], errors);
    }
    match (kind.is("Localhost"), file.is_set()) {
        (true, false) => errors.push(file.required("must be set when seccomp type is Localhost")),
        (true, true) => descending_path(&file, errors),
        (false, true) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(Error::invalid(&file.path, profile.value.clone(), detail));
        }
        (false, false) => {}
    }
}

fn sysctls(sysctls: &Place<'_>, spec: &Place<'_>, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for name in sysctls.items().map(|sysctl| sysctl.child("name")) {
        if name.is_empty() {
            errors.push(name.required(""));
        } else if !is_sysctl(name.text()) {
            let segment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            errors.push(
                name.invalid(format!("must have at most 253 characters and match regex ^({segment}[\\./])*{segment}$")),
            );
        } else if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
        let dotted = name.text().replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if spec.child("hostNetwork").is_true() && dotted.starts_with("net.") {
            errors.push(name.invalid("may not be specified when 'hostNetwork' is true"));
        } else if spec.child("hostIPC").is_true() && ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
            errors.push(name.invalid("may not be specified when 'hostIPC' is true"));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|segment| {
            let bytes = segment.as_bytes();
            bytes.first().is_some_and(|&b| inner(b))
                && bytes.last().is_some_and(|&b| inner(b))
                && bytes.iter().all(|&b| inner(b) || b == b'-' || b == b'_')
        })
}
