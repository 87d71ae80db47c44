//! Seccomp profiles: the runtime's default, profiles from files, and their compilation to BPF.

use oci_spec::runtime::LinuxSeccomp;

/// RuntimeDefault for a container with these capabilities (names with `CAP_`), for `linux.seccomp` of its configuration.
///
/// Source: CRI-O's default profile.
#[must_use]
pub fn runtime_default(capabilities: &[String]) -> LinuxSeccomp {
    todo!("{capabilities:?}")
}

/// Reads a Localhost profile: OCI form or that of containers/common and Docker, with `archMap`, `includes` and `excludes`.
///
/// # Errors
/// With the place in the file; for unknown actions or operators, never for a system call that this kernel does not know.
pub fn parse_profile(json: &[u8], capabilities: &[String]) -> Result<LinuxSeccomp, ProfileError> {
    todo!("{json:?} {capabilities:?}")
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("invalid seccomp profile")]
    Json(#[from] serde_json::Error),
    #[error("invalid seccomp profile: {0}")]
    Unsupported(String),
}
