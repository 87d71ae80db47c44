//! `registries.yaml` in k3s's form: mirrors, rewrites, credentials and TLS of registries.
//!
//! Source: <https://docs.k3s.io/installation/private-registry> and `github.com/rancher/wharfie`, `pkg/registries`.

/// Where images come from. The default asks each registry itself over HTTPS.
#[derive(Clone, Debug, Default)]
pub struct Registries {}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RegistriesError(pub String);

impl Registries {
    /// Reads the file's text; every unknown key is an error that gives the nearest known one.
    pub fn parse(_yaml: &str) -> Result<Registries, RegistriesError> {
        todo!()
    }
}
