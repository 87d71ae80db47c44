//! `registries.yaml` in k3s's form: mirrors, rewrites, credentials and TLS of registries.
//!
//! Ours beside k3s's keys: a mirror's name may be a prefix (`registry.example/team`) or a domain (`*.example`), the most
//! specific wins; `blocked: true` refuses pulls. Source: <https://docs.k3s.io/installation/private-registry> and
//! `github.com/rancher/wharfie`, `pkg/registries`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use regex_lite::Regex;
use serde_json::{Map, Value};

use crate::credentials::{Secret, decode_auth};
use crate::reference::Reference;

/// Where images come from. The default asks each registry itself over HTTPS.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Config>,
}

/// What is wrong with `registries.yaml`; the message says where and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegistriesError(pub String);

#[derive(Clone, Debug, Default)]
struct Mirror {
    endpoints: Vec<Base>,
    rewrites: Vec<(Regex, String)>,
    blocked: bool,
}

#[derive(Clone, Debug, Default)]
struct Config {
    secret: Option<Secret>,
    tls: Tls,
}

/// How to speak TLS with one host. Files are read when it is first spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// Scheme, host and path of a registry's API.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    https: bool,
    host: String,
    path: String,
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `http://host[:port]/v2`
    pub url: String,
    pub host: String,
    /// The repository under the name that it has there.
    pub repository: String,
    /// The registry's name when this is a mirror of it: containerd's `ns` parameter.
    pub namespace: Option<String>,
    pub secret: Option<Secret>,
    pub tls: Tls,
}

impl Registries {
    /// Reads the file's text.
    ///
    /// # Errors
    /// For what is not YAML, and for every unknown key, with the nearest known one.
    pub fn parse(yaml: &str) -> Result<Registries, RegistriesError> {
        if yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Registries::default());
        }
        let value: Value = serde_saphyr::from_str(yaml).map_err(|error| RegistriesError(error.to_string()))?;
        let mut top = Table::new("", &value, &["mirrors", "configs"])?;
        let mut registries = Registries::default();
        for (name, value) in top.map("mirrors")? {
            registries.mirrors.insert(name.clone(), Mirror::parse(&format!("mirrors.{name}"), value)?);
        }
        for (name, value) in top.map("configs")? {
            registries.configs.insert(name.clone(), Config::parse(&format!("configs.{name}"), value)?);
        }
        Ok(registries)
    }

    /// Where to ask for `image`: its mirrors in their order, then the registry itself; None when it is blocked.
    pub(crate) fn endpoints(&self, image: &Reference) -> Option<Vec<Endpoint>> {
        let none = Mirror::default();
        let mirror = self.mirror_of(image).unwrap_or(&none);
        if mirror.blocked {
            return None;
        }
        let rewritten = mirror.rewrites.iter().find_map(|(pattern, replacement)| {
            pattern
                .is_match(&image.repository)
                .then(|| pattern.replace(&image.repository, replacement.as_str()).into_owned())
        });
        let primary = primary(&image.registry);
        let mut endpoints: Vec<Endpoint> = mirror
            .endpoints
            .iter()
            .filter(|base| base.host != primary.host || rewritten.is_some())
            .map(|base| {
                let repository = rewritten.clone().unwrap_or_else(|| image.repository.clone());
                self.endpoint(base, repository, (base.host != primary.host).then(|| image.registry.clone()))
            })
            .collect();
        let own = mirror.endpoints.iter().find(|base| base.host == primary.host).unwrap_or(&primary);
        endpoints.push(self.endpoint(own, image.repository.clone(), None));
        Some(endpoints)
    }

    /// How to speak TLS with a host, such as the storage that a registry redirects to.
    pub(crate) fn tls(&self, host: &str) -> Tls {
        self.configs.get(host).map(|config| config.tls.clone()).unwrap_or_default()
    }

    fn endpoint(&self, base: &Base, repository: String, namespace: Option<String>) -> Endpoint {
        let config = match base.host.as_str() {
            "registry-1.docker.io" => {
                ["registry-1.docker.io", "docker.io", "index.docker.io"].iter().find_map(|name| self.configs.get(*name))
            }
            host => self.configs.get(host),
        };
        let scheme = if base.https { "https" } else { "http" };
        Endpoint {
            url: format!("{scheme}://{}{}", base.host, base.path),
            host: base.host.clone(),
            repository,
            namespace,
            secret: config.and_then(|config| config.secret.clone()),
            tls: config.map(|config| config.tls.clone()).unwrap_or_default(),
        }
    }

    /// The longest name that matches: exact or a prefix at a path's border, then the longest domain, then `*`.
    fn mirror_of(&self, image: &Reference) -> Option<&Mirror> {
        let name = image.name();
        let rank = |key: &str| match key.strip_prefix('*') {
            Some("") => Some((0, 0)),
            Some(domain) => (domain.starts_with('.') && image.registry.ends_with(domain)).then_some((1, domain.len())),
            None => (name == key || name.strip_prefix(key).is_some_and(|rest| rest.starts_with('/')))
                .then_some((2, key.len())),
        };
        let ranked = self.mirrors.iter().filter_map(|(key, mirror)| Some((rank(key)?, mirror)));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, mirror)| mirror)
    }
}

/// The registry itself: Docker Hub's API has a host of its own, and loopback is spoken to without TLS as docker does.
fn primary(registry: &str) -> Base {
    let host = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
    Base { https: !loopback, host: host.to_owned(), path: "/v2".to_owned() }
}

impl Mirror {
    fn parse(at: &str, value: &Value) -> Result<Mirror, RegistriesError> {
        let mut table = Table::new(at, value, &["endpoint", "rewrite", "blocked"])?;
        let mut mirror = Mirror { blocked: table.boolean("blocked")?, ..Mirror::default() };
        let endpoints = match table.take("endpoint") {
            None => &[],
            Some(Value::Array(endpoints)) => endpoints.as_slice(),
            Some(_) => return Err(RegistriesError(format!("{at}.endpoint: must be a list of URLs"))),
        };
        for (index, endpoint) in endpoints.iter().enumerate() {
            let text = endpoint.as_str().unwrap_or_default();
            let base = Base::parse(text).ok_or_else(|| {
                RegistriesError(format!(
                    "{at}.endpoint[{index}]: {endpoint} is not a URL such as https://mirror.example:5000"
                ))
            })?;
            mirror.endpoints.push(base);
        }
        for (pattern, replacement) in table.map("rewrite")? {
            let wrong = |what: String| RegistriesError(format!("{at}.rewrite: {what}"));
            let regex = Regex::new(pattern).map_err(|error| wrong(format!("{pattern:?}: {error}")))?;
            let replacement = replacement.as_str().ok_or_else(|| wrong(format!("{pattern:?} must map to a string")))?;
            mirror.rewrites.push((regex, replacement.to_owned()));
        }
        if mirror.blocked && !mirror.endpoints.is_empty() {
            return Err(RegistriesError(format!("{at}: blocked and endpoint exclude each other")));
        }
        Ok(mirror)
    }
}

impl Base {
    /// An address without a scheme is spoken to with TLS; without a path, under `/v2`.
    fn parse(text: &str) -> Option<Base> {
        let (https, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return None,
            None => (true, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { "/v2".to_owned() } else { format!("/{path}") };
        let uri: http::Uri = format!("http://{host}{path}").parse().ok()?;
        (!host.is_empty() && !host.contains('@') && uri.query().is_none()).then(|| Base {
            https,
            host: host.to_owned(),
            path,
        })
    }
}

impl Config {
    fn parse(at: &str, value: &Value) -> Result<Config, RegistriesError> {
        let mut table = Table::new(at, value, &["auth", "tls"])?;
        let mut config = Config::default();
        if let Some(value) = table.take("auth") {
            let at = format!("{at}.auth");
            let mut auth = Table::new(&at, value, &["username", "password", "auth", "identity_token"])?;
            let (username, password) = (auth.text("username")?, auth.text("password")?);
            config.secret = match (auth.text("identity_token")?, auth.text("auth")?, username) {
                (Some(token), _, _) => Some(Secret::Identity(token)),
                (None, Some(encoded), _) => Some(
                    decode_auth(&encoded)
                        .ok_or_else(|| RegistriesError(format!("{at}.auth: must be base64 of USERNAME:PASSWORD")))?,
                ),
                (None, None, Some(username)) => {
                    Some(Secret::Basic { username, password: password.unwrap_or_default() })
                }
                (None, None, None) => None,
            };
        }
        if let Some(value) = table.take("tls") {
            let at = format!("{at}.tls");
            let mut tls = Table::new(&at, value, &["ca_file", "cert_file", "key_file", "insecure_skip_verify"])?;
            config.tls = Tls {
                ca_file: tls.text("ca_file")?.map(PathBuf::from),
                cert_file: tls.text("cert_file")?.map(PathBuf::from),
                key_file: tls.text("key_file")?.map(PathBuf::from),
                insecure_skip_verify: tls.boolean("insecure_skip_verify")?,
            };
            if config.tls.cert_file.is_some() != config.tls.key_file.is_some() {
                return Err(RegistriesError(format!("{at}: cert_file and key_file must be given together")));
            }
        }
        Ok(config)
    }
}

/// A mapping of which every key is known. A missing or null one is empty.
struct Table<'a> {
    at: String,
    members: Option<&'a Map<String, Value>>,
}

impl<'a> Table<'a> {
    fn new(at: &str, value: &'a Value, known: &[&str]) -> Result<Table<'a>, RegistriesError> {
        let at = if at.is_empty() { String::new() } else { format!("{at}.") };
        let members = match value {
            Value::Null => None,
            Value::Object(members) => Some(members),
            _ => return Err(RegistriesError(format!("{}: must be a mapping", at.trim_end_matches('.')))),
        };
        for key in members.into_iter().flat_map(|members| members.keys()) {
            if !known.contains(&key.as_str()) {
                let nearest = known.iter().max_by(|a, b| strsim::jaro(a, key).total_cmp(&strsim::jaro(b, key)));
                let nearest = nearest.expect("every table knows a key");
                return Err(RegistriesError(format!("{at}{key}: unknown key, did you mean {nearest:?}?")));
            }
        }
        Ok(Table { at, members })
    }

    fn take(&mut self, key: &str) -> Option<&'a Value> {
        self.members?.get(key).filter(|value| !value.is_null())
    }

    fn map(&mut self, key: &str) -> Result<impl Iterator<Item = (&'a String, &'a Value)> + use<'a>, RegistriesError> {
        match self.take(key) {
            None => Ok(None.into_iter().flatten()),
            Some(Value::Object(members)) => Ok(Some(members.iter()).into_iter().flatten()),
            Some(_) => Err(RegistriesError(format!("{}{key}: must be a mapping", self.at))),
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, RegistriesError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(RegistriesError(format!("{}{key}: must be a string, not {other}; quote it", self.at))),
        }
    }

    fn boolean(&mut self, key: &str) -> Result<bool, RegistriesError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(RegistriesError(format!("{}{key}: must be true or false, not {other}", self.at))),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(yaml: &str, image: &str, endpoints: Expect) {
        let image = Reference::parse(image).unwrap();
        let shown = match Registries::parse(yaml).map(|registries| registries.endpoints(&image)) {
            Err(error) => format!("error: {error}"),
            Ok(None) => "blocked".to_owned(),
            Ok(Some(found)) => {
                let line = |end: &Endpoint| {
                    let namespace = end.namespace.as_ref().map(|ns| format!(" ns={ns}")).unwrap_or_default();
                    let auth = if end.secret.is_some() { " auth" } else { "" };
                    format!("{}/{}{namespace}{auth}", end.url, end.repository)
                };
                found.iter().map(line).collect::<Vec<_>>().join("\n")
            }
        };
        endpoints.assert_eq(&shown);
    }

    const YAML: &str = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://second.example/hub"]
    rewrite: {"^library/(.*)": "base/$1"}
  "*":
    endpoint: [https://any.example]
  registry.example:
    endpoint: [https://broad.example]
  registry.example/team:
    endpoint: [https://narrow.example]
  "*.corp.example":
    endpoint: [https://corp.example]
  bad.example: {blocked: true}
configs:
  "mirror.example:5000":
    auth: {username: me, password: secret}
  docker.io:
    auth: {auth: bWU6c2VjcmV0}
"#;

    #[test]
    fn mirrors_come_in_order_and_the_registry_last() {
        check(
            YAML,
            "busybox",
            expect![[r#"
                https://mirror.example:5000/v2/base/busybox ns=docker.io auth
                http://second.example/hub/base/busybox ns=docker.io
                https://registry-1.docker.io/v2/library/busybox auth"#]],
        );
        check("", "localhost:5000/x", expect!["http://localhost:5000/v2/x"]);
    }

    #[test]
    fn the_most_specific_mirror_wins() {
        check(
            YAML,
            "registry.example/team/x",
            expect![[r#"
            https://narrow.example/v2/team/x ns=registry.example
            https://registry.example/v2/team/x"#]],
        );
        check(
            YAML,
            "registry.example/teams/x",
            expect![[r#"
            https://broad.example/v2/teams/x ns=registry.example
            https://registry.example/v2/teams/x"#]],
        );
        check(
            YAML,
            "a.corp.example/x",
            expect![[r#"
            https://corp.example/v2/x ns=a.corp.example
            https://a.corp.example/v2/x"#]],
        );
        check(
            YAML,
            "else.example/x",
            expect![[r#"
            https://any.example/v2/x ns=else.example
            https://else.example/v2/x"#]],
        );
        check(YAML, "bad.example/x", expect!["blocked"]);
    }

    #[test]
    fn mistakes_name_their_place_and_the_nearest_key() {
        check("mirror: {}", "x", expect![[r#"error: mirror: unknown key, did you mean "mirrors"?"#]]);
        check(
            "mirrors: {a: {endpoints: []}}",
            "x",
            expect![[r#"error: mirrors.a.endpoints: unknown key, did you mean "endpoint"?"#]],
        );
        check(
            "configs: {a: {tls: {ca: x}}}",
            "x",
            expect![[r#"error: configs.a.tls.ca: unknown key, did you mean "ca_file"?"#]],
        );
        check("mirrors: {a: {endpoint: https://x}}", "x", expect!["error: mirrors.a.endpoint: must be a list of URLs"]);
        check(
            "mirrors: {a: {endpoint: ['ftp://x']}}",
            "x",
            expect![[r#"error: mirrors.a.endpoint[0]: "ftp://x" is not a URL such as https://mirror.example:5000"#]],
        );
        check(
            "configs: {a: {auth: {username: 5}}}",
            "x",
            expect!["error: configs.a.auth.username: must be a string, not 5; quote it"],
        );
        check(
            "configs: {a: {tls: {cert_file: /c}}}",
            "x",
            expect!["error: configs.a.tls: cert_file and key_file must be given together"],
        );
    }
}
