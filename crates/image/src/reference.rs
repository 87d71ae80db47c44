//! Image references: `[host[:port]/]path[:tag][@digest]`, in the short and the full form.
//!
//! Source: `github.com/distribution/reference`.

use std::fmt;

use crate::digest::Digest;

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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    #[error("unsupported digest algorithm")]
    Algorithm,
}

impl Reference {
    /// Reads a name as users write it: `busybox` becomes `docker.io/library/busybox:latest`.
    pub fn parse(_name: &str) -> Result<Reference, ReferenceError> {
        todo!()
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
