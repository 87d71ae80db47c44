//! Volumes, and where they are mounted.

use std::collections::BTreeSet;

use api::field::Error;
use api::names;
use api::quantity::Quantity;

use super::env::{field_reference, resource_reference};
use super::{Pod, Volumes};
use crate::place::Place;

/// The fields that the downward API offers as files.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Returns the volumes that mounts may name: those with nothing wrong.
pub(super) fn validate<'a>(volumes: &Place<'a>, errors: &mut Vec<Error>) -> Volumes<'a> {
    let mut good = Volumes::new();
    for volume in volumes.items() {
        let mut wrong = Vec::new();
        source(&volume, &mut wrong);
        let name = volume.child("name");
        name.require(names::is_dns1123_label, &mut wrong);
        if good.contains_key(name.text()) {
            wrong.push(name.duplicate());
        }
        if wrong.is_empty() {
            good.insert(name.text(), volume);
        } else {
            errors.append(&mut wrong);
        }
    }
    good
}

fn source(volume: &Place<'_>, errors: &mut Vec<Error>) {
    let mut sources = 0;
    for (kind, check) in [
        ("emptyDir", empty_dir as fn(&Place<'_>, &mut Vec<Error>)),
        ("hostPath", host_path),
        ("secret", |secret, errors| files(secret, "secretName", errors)),
        ("downwardAPI", downward_api),
        ("configMap", |config, errors| files(config, "name", errors)),
        ("projected", projected),
        ("image", image),
    ] {
        let source = volume.child(kind);
        if !source.is_set() {
            continue;
        }
        sources += 1;
        if sources > 1 {
            // Upstream misspells this one.
            let name = if kind == "downwardAPI" { "downwarAPI" } else { kind };
            errors.push(Error::forbidden(&volume.path.child(name), "may not specify more than 1 volume type"));
        } else {
            check(&source, errors);
        }
    }
    let others = volume.value.as_object().is_some_and(|fields| fields.len() > usize::from(fields.contains_key("name")));
    if sources == 0 && !others {
        errors.push(volume.required("must specify a volume type"));
    }
}

fn empty_dir(dir: &Place<'_>, errors: &mut Vec<Error>) {
    let limit = dir.child("sizeLimit");
    if !limit.is_set() {
        return;
    }
    match Quantity::from_json(limit.value) {
        Ok(amount) if amount.is_negative() => {
            errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
        }
        Ok(_) => {}
        Err(error) => errors.push(limit.invalid(error.to_string())),
    }
}

fn host_path(host: &Place<'_>, errors: &mut Vec<Error>) {
    let path = host.child("path");
    if path.is_empty() {
        return errors.push(path.required(""));
    }
    no_backsteps(&path, errors);
    host.child("type").if_set_one_of(HOST_PATH_TYPES, errors);
}

fn image(image: &Place<'_>, errors: &mut Vec<Error>) {
    if image.child("reference").is_empty() {
        errors.push(image.child("reference").required(""));
    }
    image.child("pullPolicy").if_set_one_of(&["Always", "IfNotPresent", "Never"], errors);
}

/// A secret or a config map, whose name stands in the field `name`.
fn files(source: &Place<'_>, name: &str, errors: &mut Vec<Error>) {
    source.child(name).must_be_set(errors);
    mode(&source.child("defaultMode"), errors);
    for item in source.child("items").items() {
        key_to_path(&item, errors);
    }
}

fn key_to_path(item: &Place<'_>, errors: &mut Vec<Error>) {
    let path = item.child("path");
    item.child("key").must_be_set(errors);
    path.must_be_set(errors);
    local_path(&path, errors);
    mode(&item.child("mode"), errors);
}

fn mode(mode: &Place<'_>, errors: &mut Vec<Error>) {
    if mode.is_set() && !(0..=0o777).contains(&mode.number()) {
        errors.push(mode.invalid("must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

fn downward_api(source: &Place<'_>, errors: &mut Vec<Error>) {
    mode(&source.child("defaultMode"), errors);
    for file in source.child("items").items() {
        // Upstream's paths leave `items[i]` out.
        downward_file(&Place::new(file.value, source.path.clone()), errors);
    }
}

fn downward_file(file: &Place<'_>, errors: &mut Vec<Error>) {
    let (path, field, resource) = (file.child("path"), file.child("fieldRef"), file.child("resourceFieldRef"));
    path.must_be_set(errors);
    local_path(&path, errors);
    if field.is_set() {
        field_reference(&field, FILE_FIELDS, errors);
        if resource.is_set() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(Error::invalid(&file.path, "resource", detail));
        }
    } else if resource.is_set() {
        resource_reference(&resource, true, errors);
    } else {
        errors.push(file.required("one of fieldRef and resourceFieldRef is required"));
    }
    mode(&file.child("mode"), errors);
}

fn projected(volume: &Place<'_>, errors: &mut Vec<Error>) {
    mode(&volume.child("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    let mut conflict = |path: &str, shown: &str, errors: &mut Vec<Error>| {
        if !path.is_empty() && !paths.insert(path.to_owned()) {
            errors.push(Error::invalid(&volume.path, shown, "conflicting duplicate paths"));
        }
    };
    for source in volume.child("sources").items() {
        let kinds = ["secret", "configMap", "downwardAPI", "serviceAccountToken"].map(|kind| source.child(kind));
        let [secret, config, downward, token] = &kinds;
        for named in [secret, config].into_iter().filter(|named| named.is_set()) {
            named.child("name").must_be_set(errors);
            for item in named.child("items").items() {
                key_to_path(&item, errors);
                conflict(item.child("path").text(), named.child("name").text(), errors);
            }
        }
        for file in downward.child("items").items() {
            downward_file(&Place::new(file.value, downward.path.clone()), errors);
            let path = file.child("path").text();
            conflict(path, path, errors);
        }
        if token.is_set() {
            service_account_token(token, volume, errors);
        }
        if kinds.iter().filter(|kind| kind.is_set()).count() > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type per source"));
        }
    }
}

fn service_account_token(token: &Place<'_>, volume: &Place<'_>, errors: &mut Vec<Error>) {
    let seconds = token.child("expirationSeconds");
    match seconds.value.as_i64() {
        None => errors.push(seconds.required("")),
        Some(..600) => errors.push(seconds.invalid("may not specify a duration less than 10 minutes")),
        Some(n) if n > 1 << 32 => errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds")),
        Some(_) => {}
    }
    // Upstream's path is that of the volume.
    let path = Place::new(token.child("path").value, volume.path.child("path"));
    path.must_be_set(errors);
    local_path(&path, errors);
}

fn no_backsteps(path: &Place<'_>, errors: &mut Vec<Error>) {
    if path.text().split('/').any(|step| step == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
}

pub(super) fn descending_path(path: &Place<'_>, errors: &mut Vec<Error>) {
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    no_backsteps(path, errors);
}

/// Names that begin with two dots are how files are replaced atomically.
fn local_path(path: &Place<'_>, errors: &mut Vec<Error>) {
    descending_path(path, errors);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        errors.push(path.invalid("must not start with '..'"));
    }
}

pub(super) fn mounts(container: &Place<'_>, pod: &Pod<'_>, errors: &mut Vec<Error>) {
    let mounts = container.child("volumeMounts");
    let mut paths = BTreeSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        name.must_be_set(errors);
        if !pod.volumes.contains_key(name.text()) {
            errors.push(missing_volume(&name, pod));
        }
        path.must_be_set(errors);
        if !paths.insert(path.text()) {
            errors.push(Error::invalid(&path.path, path.text(), "must be unique"));
        }
        // Upstream's paths of the following leave the index out.
        let at = |field: &str| Place::new(mount.child(field).value, mounts.path.child(field));
        let (sub_path, expression) = (at("subPath"), at("subPathExpr"));
        descending_path(&sub_path, errors);
        if !sub_path.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(mount.child("subPathExpr").invalid(detail));
        }
        descending_path(&expression, errors);
        propagation(&at("mountPropagation"), container, errors);
        recursive_read_only(&at("recursiveReadOnly"), &mount, errors);
    }
}

/// Upstream's error, and the volume that was probably meant.
fn missing_volume(name: &Place<'_>, pod: &Pod<'_>) -> Error {
    let mut error = name.not_found();
    let mounted: BTreeSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| pod.spec.child(list).items())
        .flat_map(|container| container.child("volumeMounts").items())
        .map(|mount| mount.child("name").text())
        .collect();
    if pod.volume_names.contains(&name.text()) {
        // It exists, and is wrong itself; that error says so.
        return error;
    }
    let volumes = pod.volume_names.iter().copied().filter(|volume| !volume.is_empty());
    let close = volumes
        .clone()
        .filter(|volume| distance(volume, name.text()) <= 2)
        .min_by_key(|volume| distance(volume, name.text()));
    let unused: Vec<&str> = volumes.clone().filter(|volume| !mounted.contains(volume)).collect();
    let unused = match unused.as_slice() {
        [one] => Some(*one),
        _ => None,
    };
    if let Some(meant) = close.or(unused) {
        error.detail = format!("did you mean the volume {meant:?}?");
    }
    error
}

/// The number of letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn propagation(propagation: &Place<'_>, container: &Place<'_>, errors: &mut Vec<Error>) {
    propagation.if_set_one_of(&["Bidirectional", "HostToContainer", "None"], errors);
    let privileged = container.child("securityContext").child("privileged").is_true();
    if propagation.is("Bidirectional") && !privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(propagation.forbidden(detail));
    }
}

fn recursive_read_only(value: &Place<'_>, mount: &Place<'_>, errors: &mut Vec<Error>) {
    value.if_set_one_of(&["Disabled", "Enabled", "IfPossible"], errors);
    if !matches!(value.text(), "Enabled" | "IfPossible") {
        return;
    }
    if !mount.child("readOnly").is_true() {
        errors.push(value.forbidden("may only be specified when readOnly is true"));
    }
    let propagation = mount.child("mountPropagation");
    if propagation.is_set() && !propagation.is("None") {
        errors.push(value.forbidden("may only be specified when mountPropagation is None or not specified"));
    }
}
