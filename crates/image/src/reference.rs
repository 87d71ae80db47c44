//! Image references: `[host[:port]/]path[:tag][@digest]`, in the short and the full form.
//!
//! Source: `github.com/distribution/reference`, `normalize.go` and `regexp.go`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A full reference: it names a registry and at least one of tag and digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Such as `docker.io` or `registry.example:5000`.
    pub registry: String,
    /// Such as `library/busybox`.
    pub repository: String,
    pub tag: Option<String>,
    /// Wins over `tag`.
    pub digest: Option<Digest>,
}

/// Why a name is no reference, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    #[error("repository name must not be more than {NAME_LIMIT} characters")]
    TooLong,
    #[error("unsupported digest algorithm")]
    Algorithm,
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
}

impl Reference {
    /// Reads a name as users write it: `busybox` becomes `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    /// When it does not follow the grammar; the message is upstream's.
    pub fn parse(name: &str) -> Result<Reference, ReferenceError> {
        if is_hex_id(name) {
            return Err(ReferenceError::LooksLikeId(name.to_owned()));
        }
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (name, None),
        };
        let (registry, remainder) = split_registry(rest);
        let (path, tag) = match remainder.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        check_registry(&registry)?;
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(repository));
        }
        if !repository.split('/').all(is_path_component) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Format);
        }
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { registry, repository, tag, digest })
    }

    /// Registry and repository, such as `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether the image lives on this node alone.
    pub fn is_local(&self) -> bool {
        self.registry == "localhost"
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The first part is a registry when it cannot be a path: it has a dot, a port, an upper-case letter, or is `localhost`.
fn split_registry(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            match first {
                "index.docker.io" => (DEFAULT_REGISTRY.to_owned(), rest),
                _ => (first.to_owned(), rest),
            }
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    }
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(ReferenceError::Format)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| ReferenceError::Format)?;
            ("ip6", port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, Some("0")),
        },
    };
    let port = port.ok_or(ReferenceError::Format)?;
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host.split('.').all(label) && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok() {
        true => Ok(()),
        false => Err(ReferenceError::Format),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let starts_and_ends = component.starts_with(alphanumeric) && component.ends_with(alphanumeric);
    starts_and_ends
        && component
            .split(alphanumeric)
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

/// `\w[\w.-]{0,127}`
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    text.parse().map_err(|error| match error {
        DigestError::Form(_) => ReferenceError::Format,
        DigestError::Algorithm(_) => ReferenceError::Algorithm,
    })
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(name: &str, full: Expect) {
        full.assert_eq(&Reference::parse(name).map_or_else(|error| format!("error: {error}"), |full| full.to_string()));
    }

    #[test]
    fn short_names_are_completed() {
        check("busybox", expect!["docker.io/library/busybox:latest"]);
        check("gotson/komga:1.23.4", expect!["docker.io/gotson/komga:1.23.4"]);
        check("docker.io/busybox", expect!["docker.io/library/busybox:latest"]);
        check("index.docker.io/library/busybox:1", expect!["docker.io/library/busybox:1"]);
        check("localhost/site", expect!["localhost/site:latest"]);
        check("registry.example:5000/a/b", expect!["registry.example:5000/a/b:latest"]);
        check("[2001:db8::1]:5000/a", expect!["[2001:db8::1]:5000/a:latest"]);
    }

    #[test]
    fn digest_pins_keep_the_tag_but_add_none() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check(
            &format!("busybox@sha256:{hex}"),
            expect![
                "docker.io/library/busybox@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            ],
        );
        check(
            &format!("busybox:1@sha256:{hex}"),
            expect![
                "docker.io/library/busybox:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            ],
        );
        check("busybox@sha512:00", expect!["error: unsupported digest algorithm"]);
        check("busybox@sha256:00", expect!["error: invalid reference format"]);
        check(
            hex,
            expect![
                "error: invalid repository name (e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855), cannot specify 64-byte hexadecimal strings"
            ],
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        check("", expect!["error: invalid reference format"]);
        check("foo/Bar", expect!["error: invalid reference format: repository name (foo/Bar) must be lowercase"]);
        check("busybox:", expect!["error: invalid reference format"]);
        check("busybox:-x", expect!["error: invalid reference format"]);
        check("a..b", expect!["error: invalid reference format"]);
        check("a___b", expect!["error: invalid reference format"]);
        check("../etc", expect!["error: invalid reference format"]);
        check("registry.example/../../x", expect!["error: invalid reference format"]);
        check("registry.example:99999/x", expect!["error: invalid reference format"]);
        check("a b", expect!["error: invalid reference format"]);
        check(
            &format!("{}a", "a/".repeat(200)),
            expect!["error: repository name must not be more than 255 characters"],
        );
    }

    #[test]
    fn separators_follow_upstream() {
        check("a--b/c__d/e.f_g", expect!["docker.io/a--b/c__d/e.f_g:latest"]);
        assert!(Reference::parse("localhost/x").unwrap().is_local());
        assert!(!Reference::parse("localhost:5000/x").unwrap().is_local());
    }
}
