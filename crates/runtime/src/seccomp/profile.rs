//! Localhost profiles, in OCI's form or that of containers/common and Docker.
//!
//! The latter adds `archMap`, and to each rule `name`, `includes`, `excludes` (capabilities, architectures, a least kernel), which are
//! resolved here. Source: `go.podman.io/common/pkg/seccomp`, `types.go` and `seccomp_linux.go`.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("invalid seccomp profile")]
    Json(#[from] serde_json::Error),
    #[error("invalid seccomp profile: {0}")]
    Unsupported(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    /// Names for `defaultErrnoRet`; the number is what counts.
    #[serde(default, rename = "defaultErrno")]
    _default_errno: Option<String>,
    /// The program is compiled for this machine's architecture, whatever else the profile is for.
    #[serde(default, rename = "architectures")]
    _architectures: Option<Vec<String>>,
    #[serde(default, rename = "archMap")]
    _arch_map: Option<serde_json::Value>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default, rename = "listenerMetadata")]
    _listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default, rename = "errno")]
    _errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Docker's and Go's names of this machine's architecture.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "arm64";

/// Reads a Localhost profile for a container with these capabilities (names with `CAP_`).
///
/// # Errors
/// For what is not JSON, unknown fields, actions and operators, and what cannot be enforced (`flags`, `listenerPath`, notify). A system
/// call that does not exist on this machine is no error.
pub fn parse_profile(json: &[u8], capabilities: &[String]) -> Result<LinuxSeccomp, ProfileError> {
    let file: File = serde_json::from_slice(json)?;
    let refuse = |what: &str| Err(ProfileError::Unsupported(format!("{what} is not supported")));
    if file.flags.is_some_and(|flags| !flags.is_empty()) {
        return refuse("flags");
    }
    if file.listener_path.is_some_and(|path| !path.is_empty()) {
        return refuse("listenerPath");
    }
    let kernel = kernel_version();
    let mut syscalls = Vec::new();
    for rule in file.syscalls.unwrap_or_default() {
        if applies(&rule, capabilities, kernel)? {
            syscalls.extend(convert(rule)?);
        }
    }
    let mut builder = LinuxSeccompBuilder::default().default_action(file.default_action).syscalls(syscalls);
    if let Some(errno) = file.default_errno_ret {
        builder = builder.default_errno_ret(errno);
    }
    let profile = builder.build().map_err(|error| ProfileError::Unsupported(error.to_string()))?;
    crate::bpf::compile(&profile).map_err(|error| ProfileError::Unsupported(error.to_string()))?;
    Ok(profile)
}

/// All of `includes` must hold, and none of `excludes`.
fn applies(rule: &Rule, capabilities: &[String], kernel: (u32, u32)) -> Result<bool, ProfileError> {
    let has = |name: &String| capabilities.contains(name);
    let here = |arches: &[String]| arches.iter().any(|arch| arch == ARCHITECTURE);
    if let Some(filter) = &rule.includes {
        let arch = filter.arches.is_empty() || here(&filter.arches);
        if !arch || !filter.caps.iter().all(has) || !new_enough(filter, kernel)? {
            return Ok(false);
        }
    }
    if let Some(filter) = &rule.excludes {
        let kernel = filter.min_kernel.is_some() && new_enough(filter, kernel)?;
        if here(&filter.arches) || filter.caps.iter().any(has) || kernel {
            return Ok(false);
        }
    }
    Ok(true)
}

fn new_enough(filter: &Filter, kernel: (u32, u32)) -> Result<bool, ProfileError> {
    let Some(least) = &filter.min_kernel else { return Ok(true) };
    match version(least) {
        Some(least) => Ok(kernel >= least),
        None => Err(ProfileError::Unsupported(format!("minKernel {least:?} is not a version, e.g. 4.8"))),
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    name.release().to_str().ok().and_then(version).unwrap_or_default()
}

fn convert(rule: Rule) -> Result<Option<LinuxSyscall>, ProfileError> {
    let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut builder = LinuxSyscallBuilder::default().names(names).action(rule.action);
    if let Some(errno) = rule.errno_ret {
        builder = builder.errno_ret(errno);
    }
    if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
        builder = builder.args(args);
    }
    builder.build().map(Some).map_err(|error| ProfileError::Unsupported(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::native;

    fn verdict(json: &str, capabilities: &[&str], call: &str, arguments: &[u64]) -> String {
        let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let profile = parse_profile(json.as_bytes(), &capabilities).unwrap();
        native(&crate::bpf::compile(&profile).unwrap(), call, arguments)
    }

    const DOCKER: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}
        ]}"#;

    #[test]
    fn filters_are_resolved() {
        assert_eq!(verdict(DOCKER, &[], "read", &[]), "allow");
        assert_eq!(verdict(DOCKER, &[], "mount", &[]), "errno 1");
        assert_eq!(verdict(DOCKER, &["CAP_SYS_ADMIN"], "mount", &[]), "allow");
        assert_eq!(verdict(DOCKER, &["CAP_SYS_ADMIN"], "mkdir", &[]), "errno 1");
        assert_eq!(verdict(DOCKER, &[], "write", &[]), "errno 1");
        assert_eq!(verdict(DOCKER, &[], "close", &[]), "errno 1");
        assert_eq!(verdict(DOCKER, &[], "dup", &[1]), "allow");
    }

    #[test]
    fn what_cannot_be_enforced_is_named() {
        let error = |json: &str| parse_profile(json.as_bytes(), &[]).unwrap_err();
        let flags = r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#;
        assert_eq!(error(flags).to_string(), "invalid seccomp profile: flags is not supported");
        assert!(matches!(error(r#"{"defaultAction": "SCMP_ACT_SING"}"#), ProfileError::Json(_)));
        assert!(matches!(error(r#"{"defaultAction": "SCMP_ACT_ALLOW", "sysCalls": []}"#), ProfileError::Json(_)));
    }
}
