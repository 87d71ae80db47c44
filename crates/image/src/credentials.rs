//! Registry credentials given with one pull: what a pod's `imagePullSecrets` hold.

use std::fmt;

/// One entry of a docker configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The entry's key with scheme and `/v1/`, `/v2/` removed: `host[:port][/path]`; host labels may be globs.
    pub registry: String,
    pub secret: Secret,
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

/// The entries of a Secret's `.dockerconfigjson`.
pub fn from_docker_config_json(_bytes: &[u8]) -> Result<Vec<Credentials>, CredentialsError> {
    todo!()
}

/// The entries of a Secret's legacy `.dockercfg`.
pub fn from_docker_cfg(_bytes: &[u8]) -> Result<Vec<Credentials>, CredentialsError> {
    todo!()
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
