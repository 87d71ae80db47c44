//! Capabilities: names, the default set and the arithmetic of `securityContext.capabilities`.
//!
//! Sources: capability.h of the kernel; CRI-O `internal/config/capabilities` (defaults) and `server/container_create.go`.

/// What a container has when its plan says nothing. Source: CRI-O's `default_capabilities`.
pub const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
];

/// The set after `drop` and `add`, names with `CAP_`, sorted. `ALL` in either stands for every capability; with `drop: [ALL]` only
/// what `add` names is left. Names are accepted with or without `CAP_`, in any case.
///
/// # Errors
/// `unknown capability "CAP_X" to add` (or `to drop`), as CRI-O words it.
pub fn resolve(add: &[String], drop: &[String]) -> Result<Vec<String>, UnknownCapability> {
    todo!("{add:?} {drop:?}")
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {name:?} to {verb}")]
pub struct UnknownCapability {
    pub name: String,
    pub verb: &'static str,
}
