//! Registry credentials given with one pull: what a pod's `imagePullSecrets` hold.
//!
//! Source: kubernetes `pkg/credentialprovider/{config,keyring}.go`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::access::{Grant, Source};
use crate::digest::Digest;
use crate::reference::Reference;

/// One entry of a docker configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The entry's key with scheme and `/v1/`, `/v2/` removed: `host[:port][/path]`; host labels may be globs.
    pub registry: String,
    pub secret: Secret,
    /// The object that they are of, when that decides who may use what is pulled with them.
    pub source: Option<Source>,
}

impl Credentials {
    /// What an image that was pulled with them keeps of them.
    pub(crate) fn grant(&self) -> Option<Grant> {
        let parts = match &self.secret {
            Secret::Basic { username, password } => ["basic", username, password],
            Secret::Identity(token) => ["identity", token, ""],
            Secret::Registry(token) => ["registry", token, ""],
        };
        let text = serde_json::to_vec(&parts).expect("strings become JSON");
        Some(Grant { source: self.source.clone()?, hash: Digest::of(&text) })
    }
}

/// Those among the credentials that are for this image, as they are known to images pulled before.
pub fn offered(all: &[Credentials], image: &Reference) -> Vec<Grant> {
    matching(all, image).into_iter().filter_map(Credentials::grant).collect()
}

#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token (`identitytoken`).
    Identity(String),
    /// Sent as a bearer token without a token server.
    Registry(String),
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("not a docker configuration: {0}")]
    Json(serde_json::Error),
    #[error("auth of registry {registry:?} is not base64 of USERNAME:PASSWORD")]
    Auth { registry: String },
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// Other members, such as `email`, are as meaningless to a pull as they are upstream.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// The entries of a Secret's `.dockerconfigjson`.
///
/// # Errors
/// When it is not JSON of that form.
pub fn from_docker_config_json(bytes: &[u8]) -> Result<Vec<Credentials>, CredentialsError> {
    let config: DockerConfigJson = serde_json::from_slice(bytes).map_err(CredentialsError::Json)?;
    config.auths.into_iter().filter_map(credentials).collect()
}

/// The entries of a Secret's legacy `.dockercfg`.
///
/// # Errors
/// When it is not JSON of that form.
pub fn from_docker_cfg(bytes: &[u8]) -> Result<Vec<Credentials>, CredentialsError> {
    let auths: BTreeMap<String, Entry> = serde_json::from_slice(bytes).map_err(CredentialsError::Json)?;
    auths.into_iter().filter_map(credentials).collect()
}

fn credentials((key, entry): (String, Entry)) -> Option<Result<Credentials, CredentialsError>> {
    let registry = registry_of(&key);
    let secret = if !entry.registry_token.is_empty() {
        Secret::Registry(entry.registry_token)
    } else if !entry.identity_token.is_empty() {
        Secret::Identity(entry.identity_token)
    } else if !entry.auth.is_empty() {
        match decode_auth(&entry.auth) {
            Some(secret) => secret,
            None => return Some(Err(CredentialsError::Auth { registry })),
        }
    } else if entry.username.is_empty() && entry.password.is_empty() {
        return None;
    } else {
        Secret::Basic { username: entry.username, password: entry.password }
    };
    Some(Ok(Credentials { registry, secret, source: None }))
}

/// The `auth` member: base64 of `username:password`, with or without padding.
pub(crate) fn decode_auth(auth: &str) -> Option<Secret> {
    let text = STANDARD
        .decode(auth.trim())
        .or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(auth.trim()))
        .ok()?;
    let text = String::from_utf8(text).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0'); // written by old docker logins
    Some(Secret::Basic { username: username.to_owned(), password: password.to_owned() })
}

fn registry_of(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
    match key {
        "index.docker.io" => "docker.io".to_owned(),
        key => key.to_owned(),
    }
}

/// The entries that match the image, most specific first.
pub(crate) fn matching<'a>(all: &'a [Credentials], image: &Reference) -> Vec<&'a Credentials> {
    let mut found: Vec<&Credentials> = all.iter().filter(|one| matches(&one.registry, image)).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.registry.len()));
    found
}

/// Host labels match as globs, the port exactly, the path as a prefix.
fn matches(pattern: &str, image: &Reference) -> bool {
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let split = |text: &str| match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name.to_owned(), port.to_owned()),
        _ => (text.to_owned(), String::new()),
    };
    let ((pattern_host, pattern_port), (image_host, image_port)) = (split(host), split(&image.registry));
    let labels = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (patterns, names) = (labels(&pattern_host), labels(&image_host));
    pattern_port == image_port
        && patterns.len() == names.len()
        && patterns.iter().zip(&names).all(|(pattern, name)| glob(pattern.as_bytes(), name.as_bytes()))
        && image.repository.starts_with(path)
}

/// `*` stands for any run of bytes.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && glob(rest, text)),
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("registry", &self.registry).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(keys: &[&str], image: &str) -> Vec<String> {
        let basic = |key: &&str| Credentials {
            registry: registry_of(key),
            secret: Secret::Identity(String::new()),
            source: None,
        };
        let all: Vec<Credentials> = keys.iter().map(basic).collect();
        matching(&all, &Reference::parse(image).unwrap()).iter().map(|one| one.registry.clone()).collect()
    }

    #[test]
    fn reads_both_forms_and_masks_them() {
        let json =
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6c2VjcmV0","email":"x"},"empty.example":{}}}"#;
        let read = from_docker_config_json(json).unwrap();
        let secret = Secret::Basic { username: "me".into(), password: "secret".into() };
        assert_eq!(read, [Credentials { registry: "docker.io".into(), secret, source: None }]);
        assert_eq!(format!("{read:?}"), r#"[Credentials { registry: "docker.io", .. }]"#);
        assert_eq!(from_docker_cfg(br#"{"a.example":{"username":"u","password":"p"}}"#).unwrap().len(), 1);
        assert!(from_docker_config_json(br#"{"auths":{"a":{"auth":"!"}}}"#).is_err());
    }

    #[test]
    fn the_longest_match_comes_first() {
        let keys = ["registry.example", "registry.example/team", "*.example", "other.example", "registry.example:5000"];
        assert_eq!(
            matched(&keys, "registry.example/team/app"),
            ["registry.example/team", "registry.example", "*.example"]
        );
        assert_eq!(matched(&keys, "registry.example:5000/app"), ["registry.example:5000"]);
        assert_eq!(matched(&["https://index.docker.io/v1/"], "busybox"), ["docker.io"]);
        assert!(matched(&["*"], "registry.example/app").is_empty());
    }
}
