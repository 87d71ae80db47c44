//! Warnings about files of one volume that hide each other.
//!
//! Source: kubernetes `pkg/api/pod/warnings.go`, `warningsForOverlappingVirtualPaths`.

use std::fmt;

use crate::place::Place;

/// A file in a volume, and in a projected one where it comes from.
struct File<'a> {
    path: &'a str,
    source: Option<String>,
}

impl fmt::Display for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, " ({source})"))
    }
}

pub fn warnings(volumes: &Place<'_>) -> Vec<String> {
    volumes.items().flat_map(|volume| of_volume(&volume)).collect()
}

fn of_volume(volume: &Place<'_>) -> Vec<String> {
    let name = volume.child("name").text();
    let mut warnings = Vec::new();
    for (field, kind, named) in
        [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
    {
        let source = volume.child(field);
        let what = described(&source, kind, named);
        warnings.extend(overlaps(files(&source, None)).map(|overlap| overlapping(name, &what, &overlap)));
    }
    let mut all = Vec::new();
    for source in volume.child("projected").child("sources").items() {
        if source.is_empty() {
            warnings.push(format!("volume {name:?} (Projected) has no sources provided"));
        }
        // Of a source that names several, which is an error, upstream looks at the first.
        let kinds =
            [("configMap", "ConfigMap", "name"), ("secret", "Secret", "name"), ("downwardAPI", "DownwardAPI", "")];
        let listed = kinds.into_iter().find(|(field, ..)| source.child(field).child("items").is_set());
        let token = source.child("serviceAccountToken");
        match listed {
            Some((field, kind, named)) => {
                let of = source.child(field);
                all.extend(files(&of, Some(described(&of, kind, named))));
            }
            None if token.is_set() => {
                all.push(File { path: token.child("path").text(), source: Some("ServiceAccountToken".to_owned()) });
            }
            None => {}
        }
    }
    warnings.extend(overlaps(all).map(|overlap| overlapping(name, "Projected", &overlap)));
    warnings
}

fn overlapping(volume: &str, what: &str, overlap: &str) -> String {
    format!("volume {volume:?} ({what}): overlapping paths: {overlap}")
}

fn described(source: &Place<'_>, kind: &str, named: &str) -> String {
    if named.is_empty() { kind.to_owned() } else { format!("{kind} {:?}", source.child(named).text()) }
}

fn files<'a>(source: &Place<'a>, described: Option<String>) -> Vec<File<'a>> {
    let items = source.child("items").items();
    items.map(|item| File { path: item.child("path").text(), source: described.clone() }).collect()
}

/// Every file with each earlier one that is it, holds it, or lies in it.
fn overlaps(mut files: Vec<File<'_>>) -> impl Iterator<Item = String> + use<> {
    for file in &mut files {
        file.path = file.path.trim_end_matches('/');
    }
    let within = |inner: &str, outer: &str| format!("{inner}/").starts_with(&format!("{outer}/"));
    let mut found = Vec::new();
    for (i, file) in files.iter().enumerate() {
        for other in &files[..i] {
            let named = !file.path.is_empty() && !other.path.is_empty();
            if named && (within(file.path, other.path) || within(other.path, file.path)) {
                found.push(format!("{file} with {other}"));
            }
        }
    }
    found.into_iter()
}
