//! `/healthz`, `/livez`, `/readyz` and `/version`.
//!
//! Source: apiserver `pkg/server/healthz/healthz.go`, `pkg/server/routes/version.go`.

use http::{Response, StatusCode};
use serde_json::json;

use crate::http::negotiate::Format;
use crate::http::reply::{self, Body};
use crate::path::Query;
use crate::server::{Server, VERSION};

/// Answers a path of health or version, or `None` when it is none.
pub fn answer(server: &Server, path: &str, query: &Query) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/');
    if path == "/version" {
        return Some(version());
    }
    let (endpoint, only) = path[1.min(path.len())..].split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    if !["healthz", "livez", "readyz"].contains(&endpoint) {
        return None;
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = String::new();
    let mut failed = Vec::new();
    let mut known = false;
    for (name, result) in checks(server, endpoint == "readyz") {
        if !only.is_empty() && only != name {
            continue;
        }
        known = true;
        if excluded.contains(&name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match result {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(why) => {
                lines.push_str(&format!("[-]{name} failed: {why}\n"));
                failed.push(name);
            }
        }
    }
    if !known {
        return Some(reply::text(StatusCode::NOT_FOUND, "404 page not found\n"));
    }
    Some(if !failed.is_empty() {
        let text = format!("{lines}{endpoint} check failed\n");
        reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)
    } else if query.get("verbose").is_some() && only.is_empty() {
        reply::text(StatusCode::OK, format!("{lines}{endpoint} check passed\n"))
    } else {
        reply::text(StatusCode::OK, "ok")
    })
}

fn checks(server: &Server, ready: bool) -> Vec<(&'static str, Result<(), String>)> {
    let mut checks = vec![("ping", Ok(()))];
    if ready {
        checks.extend(server.ready.iter().map(|(name, check)| (*name, check())));
        let stopping = server.shutdown.is_cancelled();
        checks.push(("shutdown", if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) }));
    }
    checks
}

fn version() -> Response<Body> {
    let version = json!({
        "major": "1", "minor": "37", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": "37", "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
    });
    reply::value(StatusCode::OK, Format::Pretty, &version)
}
