//! The annotations of ingress-nginx: which are followed, which close a route because nobody here enforces them.
//!
//! Source: ingress-nginx `docs/user-guide/nginx-configuration/annotations.md`.

use std::collections::BTreeMap;

use wire::edge::Options;

pub const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// Annotations that decide who gets in, or what. Served without them, an application would be open to those it was closed to.
const RESTRICTING: [&str; 10] = [
    "whitelist-source-range",
    "allowlist-source-range",
    "denylist-source-range",
    "satisfy",
    "configuration-snippet",
    "server-snippet",
    "enable-modsecurity",
    "enable-owasp-core-rules",
    "modsecurity-transaction-id",
    "proxy-ssl-verify",
];
const RESTRICTING_PREFIXES: [&str; 4] = ["auth-", "limit-", "global-rate-limit", "modsecurity-"];

/// What an Ingress's annotations ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wishes {
    pub options: Options,
    /// Redirect plain HTTP where the host has TLS.
    pub ssl_redirect: bool,
    /// Redirect plain HTTP in any case.
    pub force_ssl_redirect: bool,
    /// A canary is no route of its own.
    pub canary: bool,
    /// Annotations because of which all routes are closed, without prefix.
    pub closing: Vec<String>,
    /// Annotations that nothing acts on, without prefix.
    pub unknown: Vec<String>,
    /// What is wrong with values, whole sentences.
    pub invalid: Vec<String>,
}

impl Wishes {
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let mut wishes = Self {
            options: Options::default(),
            ssl_redirect: true,
            force_ssl_redirect: false,
            canary: false,
            closing: Vec::new(),
            unknown: Vec::new(),
            invalid: Vec::new(),
        };
        for (key, value) in annotations.into_iter().flatten() {
            if let Some(name) = key.strip_prefix(PREFIX) {
                wishes.follow(name, value.trim());
            }
        }
        wishes
    }

    fn follow(&mut self, name: &str, value: &str) {
        let understood = match name {
            "ssl-redirect" => set(&mut self.ssl_redirect, boolean(value)),
            "force-ssl-redirect" => set(&mut self.force_ssl_redirect, boolean(value)),
            "proxy-body-size" => set(&mut self.options.body_limit, size(value)),
            "proxy-connect-timeout" => set(&mut self.options.connect_timeout_ms, seconds(value)),
            "proxy-read-timeout" => set(&mut self.options.read_timeout_ms, seconds(value)),
            "proxy-send-timeout" => set(&mut self.options.send_timeout_ms, seconds(value)),
            "backend-protocol" => match value.to_ascii_uppercase().as_str() {
                "HTTP" | "AUTO_HTTP" => set(&mut self.options.upstream_tls, Some(false)),
                "HTTPS" => set(&mut self.options.upstream_tls, Some(true)),
                // Speaking another protocol to the application than it was told would only fail less clearly.
                _ => return self.closing.push(format!("{name}: {value}")),
            },
            "canary" => set(&mut self.canary, boolean(value)),
            name if RESTRICTING.contains(&name)
                || RESTRICTING_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) =>
            {
                return self.closing.push(name.to_owned());
            }
            name => return self.unknown.push(name.to_owned()),
        };
        if !understood {
            self.invalid
                .push(format!("annotation {PREFIX}{name} has the value {value:?}, which is no {}", expected(name)));
        }
    }
}

fn expected(name: &str) -> &'static str {
    match name {
        "proxy-body-size" => "size such as 8m; the default is used",
        name if name.ends_with("-timeout") => "number of seconds; the default is used",
        _ => "\"true\" or \"false\"; the default is used",
    }
}

fn set<T>(field: &mut T, value: Option<T>) -> bool {
    value.map(|value| *field = value).is_some()
}

/// Source: Go `strconv.ParseBool`.
fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Bytes, from nginx's notation: `8m`, `512k`, `1G`. 0 is no limit.
fn size(value: &str) -> Option<u64> {
    let split = value.find(|character: char| !character.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Milliseconds, from seconds with or without their unit.
fn seconds(value: &str) -> Option<u64> {
    let number = value.strip_suffix('s').unwrap_or(value);
    number.parse::<u64>().ok().filter(|seconds| *seconds > 0)?.checked_mul(1000)
}
