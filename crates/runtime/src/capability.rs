//! Capabilities: names, the default set and the arithmetic of `securityContext.capabilities`.
//!
//! Sources: the kernel's `include/uapi/linux/capability.h`; CRI-O `internal/config/capabilities` (defaults) and
//! `server/container_create.go` (arithmetic).

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::thread::CapabilitySet;

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

/// Every capability, at the index of its number.
pub const ALL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {name:?} to {verb}")]
pub struct UnknownCapability {
    pub name: String,
    pub verb: &'static str,
}

/// The set after `drop` and `add`, names with `CAP_`, in the order of their numbers. `ALL` in either stands for every capability;
/// with `drop: [ALL]` only what `add` names is left. Names are accepted with or without `CAP_`, in any case.
///
/// # Errors
/// `unknown capability "CAP_X" to add` (or `to drop`), as CRI-O words it.
pub fn resolve(add: &[String], drop: &[String]) -> Result<Vec<String>, UnknownCapability> {
    let add = bits_of(add, "add")?;
    let drop = bits_of(drop, "drop")?;
    let default = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |bits, bit| bits | bit);
    // Additions are applied last, as CRI-O does: `drop: [ALL], add: [X]` is X, and `add: [ALL], drop: [X]` keeps all but X.
    let set = if add == every() { every() & !drop } else { (default & !drop) | add };
    Ok(names(set))
}

/// The sets of a process that has these capabilities (names with `CAP_`): bounding, permitted and effective. Inheritable and ambient
/// stay empty, so that an added capability does nothing for a process that is not root, except by file capabilities.
///
/// Unknown names are left out: [`resolve`] has refused them.
#[must_use]
pub fn sets(names: &[String]) -> LinuxCapabilities {
    let names: Capabilities = names
        .iter()
        .filter_map(|name| name.strip_prefix("CAP_").and_then(|name| name.parse::<Capability>().ok()))
        .collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(names.clone()))
        .set_permitted(Some(names.clone()))
        .set_effective(Some(names))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

fn bits_of(names: &[String], verb: &'static str) -> Result<u64, UnknownCapability> {
    names.iter().try_fold(0, |bits, name| {
        if name.eq_ignore_ascii_case("ALL") {
            return Ok(every());
        }
        let name = normal(name);
        bit(&name).map(|bit| bits | bit).ok_or(UnknownCapability { name, verb })
    })
}

fn normal(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

fn every() -> u64 {
    (1 << ALL.len()) - 1
}

/// The bit of a capability named with `CAP_`.
pub(crate) fn bit(name: &str) -> Option<u64> {
    ALL.iter().position(|known| *known == name).map(|number| 1 << number)
}

fn names(set: u64) -> Vec<String> {
    ALL.iter().enumerate().filter(|(number, _)| set & (1 << number) != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// The kernel's form of a set of names. Unknown names are left out: `validate` has refused them.
pub(crate) fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> CapabilitySet {
    CapabilitySet::from_bits_retain(names.into_iter().filter_map(bit).fold(0, |bits, bit| bits | bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], expected: Result<&str, &str>) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let result = resolve(&owned(add), &owned(drop)).map(|names| names.join(" ").replace("CAP_", ""));
        assert_eq!(result.as_deref().map_err(ToString::to_string), expected.map_err(ToOwned::to_owned));
    }

    #[test]
    fn defaults_are_nine() {
        check(&[], &[], Ok("CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE"));
    }

    #[test]
    fn drop_all_leaves_what_is_added() {
        check(&["NET_BIND_SERVICE"], &["ALL"], Ok("NET_BIND_SERVICE"));
        check(&["cap_net_raw"], &["all"], Ok("NET_RAW"));
    }

    #[test]
    fn add_all_keeps_all_but_the_dropped() {
        let names: Vec<String> = resolve(&["ALL".into()], &["SYS_ADMIN".into()]).unwrap();
        assert_eq!(names.len(), ALL.len() - 1);
        assert!(!names.iter().any(|name| name == "CAP_SYS_ADMIN"));
    }

    #[test]
    fn every_name_has_an_oci_form() {
        let all: Vec<String> = ALL.iter().map(|name| (*name).to_owned()).collect();
        let sets = sets(&all);
        let bounding = sets.bounding().as_ref().unwrap();
        assert!(bounding.iter().all(|capability| bit(&format!("CAP_{capability}")).is_some()));
        assert_eq!(bounding.len(), ALL.len());
        assert!(sets.inheritable().is_none() && sets.ambient().is_none());
    }

    #[test]
    fn unknown_names_are_errors() {
        check(&["X"], &[], Err(r#"unknown capability "CAP_X" to add"#));
        check(&[], &["CAP_Y"], Err(r#"unknown capability "CAP_Y" to drop"#));
    }
}
