//! What coracle takes from an image's configuration: a typed allow-list, for the configuration is hostile input.
//!
//! Unknown members (and docker's `HealthCheck`, `OnBuild`, …) are dropped; members with a meaning must be well formed, or
//! the image is refused. Source: OCI image-spec 1.1, `config.md`; the reasons are CVE-2022-23648 and its kin.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Upstream has no limit; these only stop what no image needs.
const STRINGS_LIMIT: usize = 4096;
const STRING_BYTES: usize = 128 * 1024; // MAX_ARG_STRLEN: execve refuses longer ones
/// Layers that overlayfs can stack: `OVL_MAX_STACK`.
pub const LAYERS_LIMIT: usize = 500;

/// The part of an image's configuration that containers may inherit. Everything else in it is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, `name` or `name:group`; empty when the image names none.
    pub user: String,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Absolute and normalized; empty when the image names none.
    pub working_dir: String,
    /// Absolute, normalized paths, never `/`.
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<ExposedPort>,
    /// Such as `SIGTERM` or `15`; None when the image names none.
    pub stop_signal: Option<String>,
    /// Shown to users, never acted on.
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposedPort {
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A configuration that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub config: ImageConfig,
    pub os: String,
    pub architecture: String,
    /// Lowest layer first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<Section>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Section {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a configuration blob.
///
/// # Errors
/// A sentence that names the member which is not well formed.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let file: File =
        serde_json::from_slice(bytes).map_err(|error| format!("image configuration is not valid: {error}"))?;
    let wrong = |member: &str, what: String| format!("image configuration is not valid: config.{member}: {what}");
    if file.rootfs.kind != "layers" {
        return Err(format!("image configuration is not valid: rootfs.type is {:?}, not \"layers\"", file.rootfs.kind));
    }
    let diff_ids = file.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.is_empty() || diff_ids.len() > LAYERS_LIMIT {
        return Err(format!("image has {} layers, 1 to {LAYERS_LIMIT} are possible", diff_ids.len()));
    }
    let section = file.config.unwrap_or_default();
    let user = section.user.unwrap_or_default();
    if !is_user(&user) {
        return Err(wrong("User", format!("{user:?} is not USER or USER:GROUP")));
    }
    let env = strings(section.env).map_err(|what| wrong("Env", what))?;
    if let Some(bad) = env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(wrong("Env", format!("{bad:?} is not NAME=value")));
    }
    let working_dir = match section.working_dir.as_deref() {
        None | Some("") => String::new(),
        Some(path) => absolute(path).map_err(|what| wrong("WorkingDir", what))?,
    };
    let mut volumes = Vec::new();
    for path in section.volumes.unwrap_or_default().keys() {
        let path = absolute(path).map_err(|what| wrong("Volumes", what))?;
        if path == "/" {
            return Err(wrong("Volumes", "the root cannot be a volume".to_owned()));
        }
        volumes.push(path);
    }
    let ports = section.exposed_ports.unwrap_or_default();
    let exposed_ports = ports.keys().filter_map(|text| exposed_port(text)).flatten().collect();
    let stop_signal = section.stop_signal.filter(|signal| !signal.is_empty());
    if let Some(signal) = stop_signal.as_deref().filter(|signal| !is_signal(signal)) {
        return Err(wrong("StopSignal", format!("{signal:?} is not a signal")));
    }
    let config = ImageConfig {
        user,
        env,
        entrypoint: strings(section.entrypoint).map_err(|what| wrong("Entrypoint", what))?,
        cmd: strings(section.cmd).map_err(|what| wrong("Cmd", what))?,
        working_dir,
        volumes,
        exposed_ports,
        stop_signal,
        labels: section.labels.unwrap_or_default(),
    };
    Ok(Parsed { config, os: file.os, architecture: file.architecture, diff_ids })
}

/// What can be an argument or a variable of a process: no NUL, not longer than the kernel takes.
fn strings(list: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let list = list.unwrap_or_default();
    if list.len() > STRINGS_LIMIT {
        return Err(format!("has {} entries, more than {STRINGS_LIMIT}", list.len()));
    }
    match list.iter().find(|text| text.contains('\0') || text.len() >= STRING_BYTES) {
        Some(_) => Err("an entry has a NUL byte or is longer than 128 KiB".to_owned()),
        None => Ok(list),
    }
}

fn is_user(user: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 256
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$' | b'@' | b'\\'))
            && !part.starts_with('-')
    };
    user.is_empty() || user.split_once(':').map_or_else(|| part(user), |(user, group)| part(user) && part(group))
}

/// A relative one counts from the root, as in every runtime; `..` is refused, not resolved.
fn absolute(path: &str) -> Result<String, String> {
    if path.len() > 4096 || path.contains('\0') || path.split('/').any(|name| name == "..") {
        return Err(format!("{path:?} is not an absolute path without \"..\""));
    }
    let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    Ok(format!("/{}", names.join("/")))
}

/// `80`, `80/tcp` or `8000-8010/udp`. What is none of them is dropped: the list only informs.
fn exposed_port(text: &str) -> Option<impl Iterator<Item = ExposedPort> + use<>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    Some((first..=last).take(STRINGS_LIMIT).map(move |port| ExposedPort { port, protocol }))
}

fn is_signal(signal: &str) -> bool {
    match signal.parse::<u8>() {
        Ok(number) => (1..=64).contains(&number),
        Err(_) => signal.len() <= 16 && signal.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-')),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(section: &str, shown: Expect) {
        let zeros = "0".repeat(64);
        let json = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["sha256:{zeros}"]}},"config":{section}}}"#
        );
        let result = parse(json.as_bytes());
        shown.assert_eq(&result.map_or_else(
            |error| error,
            |parsed| {
                let config = parsed.config;
                format!(
                    "{:?} {:?} {:?} {:?} {:?}",
                    config.user,
                    config.working_dir,
                    config.volumes,
                    config.exposed_ports.len(),
                    config.labels
                )
            },
        ));
    }

    #[test]
    fn takes_what_is_known_and_drops_the_rest() {
        check(
            r#"{"User":"static","WorkingDir":"home/./static/","Volumes":{"/config/":{}},"ExposedPorts":{"80/tcp":{},"x":{}},"Healthcheck":{"Test":["x"]},"Labels":{"containerd.io/restart.loguri":"binary:///x"}}"#,
            expect![[r#""static" "/home/static" ["/config"] 1 {"containerd.io/restart.loguri": "binary:///x"}"#]],
        );
        check("null", expect![[r#""" "" [] 0 {}"#]]);
    }

    #[test]
    fn what_could_escape_is_refused() {
        check(
            r#"{"Volumes":{"/../../etc":{}}}"#,
            expect![[
                r#"image configuration is not valid: config.Volumes: "/../../etc" is not an absolute path without "..""#
            ]],
        );
        check(
            r#"{"Volumes":{"/":{}}}"#,
            expect!["image configuration is not valid: config.Volumes: the root cannot be a volume"],
        );
        check(
            r#"{"WorkingDir":"../x"}"#,
            expect![[
                r#"image configuration is not valid: config.WorkingDir: "../x" is not an absolute path without "..""#
            ]],
        );
        check(
            r#"{"User":"a:b:c"}"#,
            expect![[r#"image configuration is not valid: config.User: "a:b:c" is not USER or USER:GROUP"#]],
        );
        check(
            r#"{"Env":["=x"]}"#,
            expect![[r#"image configuration is not valid: config.Env: "=x" is not NAME=value"#]],
        );
        check(
            r#"{"Env":["A=\u0000"]}"#,
            expect!["image configuration is not valid: config.Env: an entry has a NUL byte or is longer than 128 KiB"],
        );
        check(
            r#"{"StopSignal":"/bin/sh"}"#,
            expect![[r#"image configuration is not valid: config.StopSignal: "/bin/sh" is not a signal"#]],
        );
    }
}
