//! The structure, checked: which crate may use which, what each module begins with, and how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// The arrows of the design: crate, and the workspace's crates that it may use. Tests may use more.
const ARROWS: &[(&str, &[&str])] = &[
    ("planted", &[]),
    ("api", &[]),
    ("kinds", &["api"]),
    ("store", &["api", "planted"]),
    ("client", &["api"]),
    ("server", &["api", "kinds", "store", "client", "wire", "planted"]),
    ("controllers", &["api", "client"]),
    ("scheduler", &["api", "client"]),
    ("runtime", &["planted"]),
    ("image", &["runtime", "wire"]),
    ("wire", &[]),
    ("net", &["api", "client", "wire", "planted"]),
    ("feed", &["api", "client", "wire"]),
    ("edge", &["wire", "planted"]),
    ("node", &["api", "client", "net", "image", "runtime", "wire", "planted"]),
    ("testkit", &["api", "planted"]),
    (
        "coracle",
        &[
            "api",
            "client",
            "controllers",
            "edge",
            "feed",
            "image",
            "kinds",
            "net",
            "node",
            "planted",
            "runtime",
            "scheduler",
            "server",
            "store",
            "wire",
        ],
    ),
    ("benches", &["runtime", "testkit"]),
    ("fuzzing", &["api", "client", "edge", "image", "kinds", "net", "node", "runtime", "server", "store", "wire"]),
    ("xtask", &[]),
];

/// A longer file says why in its first comment, with the words `Longer than 800 lines because`.
const LONGEST: usize = 800;

/// # Errors
/// Every violation, one in a line.
pub fn check(root: &Path) -> Result {
    let mut problems = Vec::new();
    let mut manifests: Vec<PathBuf> = read_dir(&root.join("crates"));
    manifests.extend(["benches", "xtask"].map(|name| root.join(name)));
    for dir in manifests {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        arrows(&name, &dir.join("Cargo.toml"), &mut problems);
        sources(&dir, root, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(format!("the tree is not tidy:\n  {}", problems.join("\n  "))) }
}

fn arrows(name: &str, manifest: &Path, problems: &mut Vec<String>) {
    let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
        problems.push(format!("crate {name} has no entry in xtask/src/tidy.rs"));
        return;
    };
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let dependencies = text.split("[dependencies]").nth(1).unwrap_or_default();
    let own = dependencies.lines().take_while(|line| !line.starts_with('['));
    for used in own.filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|word| !word.is_empty()) {
        if ARROWS.iter().any(|(of, _)| *of == used) && !allowed.contains(&used) {
            problems.push(format!("crate {name} must not use {used}"));
        }
    }
}

fn sources(dir: &Path, root: &Path, problems: &mut Vec<String>) {
    for path in read_dir(dir) {
        if path.is_dir() {
            sources(&path, root, problems);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let shown = path.strip_prefix(root).unwrap_or(&path).display();
            if !text.starts_with("//!") {
                problems.push(format!("{shown} does not begin with a //! that says what it is"));
            }
            let lines = text.lines().count();
            let comment: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
            if lines > LONGEST && !comment.contains("Longer than 800 lines because") {
                problems.push(format!("{shown} has {lines} lines"));
            }
        }
    }
}

fn read_dir(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    paths
}
