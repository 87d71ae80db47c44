//! Seccomp profiles: the runtime's default, profiles from files, and their compilation to BPF.

mod default_calls;
pub(crate) mod profile;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use default_calls::{ALLOWED, REFUSED, UNLOCKED};

pub(crate) use crate::bpf::compile;
pub use profile::{ProfileError, parse_profile};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;

/// `CLONE_NEW*` but for time: making a namespace takes CAP_SYS_ADMIN, also in a user namespace of one's own.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The personalities that change nothing of a process' safety: Linux and its 32-bit form, UNAME26 with either, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_NETLINK: u64 = 16;
const NETLINK_AUDIT: u64 = 9;

/// RuntimeDefault for a container with these capabilities (names with `CAP_`), for `linux.seccomp` of its configuration.
///
/// A call that is not in it fails with ENOSYS, so that C libraries fall back to an older one. `clone3`, whose flags a filter cannot
/// see, does so always; `clone` with flags for new namespaces is EPERM without CAP_SYS_ADMIN. Source: CRI-O's default profile.
///
/// # Panics
/// Never: every part of the profile is given.
#[must_use]
pub fn runtime_default(capabilities: &[String]) -> LinuxSeccomp {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let admin = has("CAP_SYS_ADMIN");
    let mut rules = vec![allow(ALLOWED.to_vec(), vec![]), refuse(REFUSED.to_vec(), EPERM, vec![])];
    let unlocked: Vec<&str> =
        UNLOCKED.iter().filter(|(name, _)| has(name)).flat_map(|(_, calls)| calls.iter().copied()).collect();
    let locked: Vec<&str> =
        UNLOCKED.iter().flat_map(|(_, calls)| calls.iter().copied()).filter(|call| !unlocked.contains(call)).collect();
    rules.extend([allow(unlocked, vec![]), refuse(locked, EPERM, vec![])]);
    rules.push(refuse(vec!["clone3"], ENOSYS, vec![]));
    if admin {
        rules.push(allow(vec!["clone", "unshare"], vec![]));
    } else {
        let plain = LinuxSeccompArgBuilder::default()
            .index(0usize)
            .value(NEW_NAMESPACES)
            .value_two(0u64)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .build()
            .expect("every part is given");
        rules.push(allow(vec!["clone"], vec![plain]));
        rules.push(refuse(vec!["clone"], EPERM, vec![]));
    }
    rules.extend(PERSONALITIES.map(|value| allow(vec!["personality"], vec![equal(0, value)])));
    if !has("CAP_AUDIT_WRITE") {
        rules.push(refuse(vec!["socket"], EINVAL, vec![equal(0, AF_NETLINK), equal(2, NETLINK_AUDIT)]));
    }
    rules.push(allow(vec!["socket"], vec![]));
    rules.retain(|rule| !rule.names().is_empty());
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(ENOSYS)
        .syscalls(rules)
        .build()
        .expect("every part is given")
}

fn equal(index: usize, value: u64) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).value(value).op(LinuxSeccompOperator::ScmpCmpEq);
    builder.build().expect("every part is given")
}

fn allow(names: Vec<&str>, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow, args).build().expect("every part is given")
}

fn refuse(names: Vec<&str>, errno: u32, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let rule = rule(names, LinuxSeccompAction::ScmpActErrno, args).errno_ret(errno);
    rule.build().expect("every part is given")
}

fn rule(names: Vec<&str>, action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> LinuxSyscallBuilder {
    let names: Vec<String> = names.into_iter().map(ToOwned::to_owned).collect();
    let builder = LinuxSyscallBuilder::default().names(names).action(action);
    if args.is_empty() { builder } else { builder.args(args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::native;

    fn default(capabilities: &[&str]) -> Vec<u64> {
        let mut names: Vec<String> = crate::capability::DEFAULT.iter().map(|name| (*name).to_owned()).collect();
        names.extend(capabilities.iter().map(|name| (*name).to_owned()));
        compile(&runtime_default(&names)).unwrap()
    }

    fn check(capabilities: &[&str], call: &str, arguments: &[u64], expected: &str) {
        assert_eq!(native(&default(capabilities), call, arguments), expected, "{call} {arguments:?}");
    }

    #[test]
    fn capabilities_unlock_calls() {
        check(&[], "chroot", &[], "errno 1");
        check(&["CAP_SYS_CHROOT"], "chroot", &[], "allow");
        check(&[], "bpf", &[], "errno 1");
        check(&["CAP_BPF"], "bpf", &[], "allow");
        check(&["CAP_SYS_ADMIN"], "setns", &[], "allow");
    }

    #[test]
    fn unknown_calls_do_not_exist() {
        check(&[], "io_uring_setup", &[], "errno 38");
        check(&[], "unshare", &[], "errno 38");
        check(&["CAP_SYS_ADMIN"], "unshare", &[], "allow");
        check(&["CAP_SYS_ADMIN"], "clone3", &[], "errno 38");
    }

    #[test]
    fn clone_makes_no_namespaces() {
        check(&[], "clone", &[0x0001_0f00], "allow");
        check(&[], "clone", &[0x1000_0000], "errno 1");
        check(&["CAP_SYS_ADMIN"], "clone", &[0x1000_0000], "allow");
    }

    #[test]
    fn sockets_do_not_reach_the_audit_system() {
        check(&[], "socket", &[2, 1, 0], "allow");
        check(&[], "socket", &[16, 3, 9], "errno 22");
        check(&[], "socket", &[16, 3, 0], "allow");
        check(&["CAP_AUDIT_WRITE"], "socket", &[16, 3, 9], "allow");
    }

    #[test]
    fn personalities_are_few() {
        check(&[], "personality", &[0xffff_ffff], "allow");
        check(&[], "personality", &[0x0004_0000], "errno 38");
    }

    /// Counts of the calls with the nine default capabilities, as computed from CRI-O's rules.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_counts_are_crios() {
        let program = default(&[]);
        let count = |verdict: &str| {
            let conditional = ["clone", "personality", "setns", "socket"];
            ALLOWED
                .iter()
                .chain(REFUSED)
                .chain(UNLOCKED.iter().flat_map(|(_, calls)| calls.iter()))
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .filter(|call| crate::syscall_table::number(call).is_some() && !conditional.contains(call))
                .filter(|call| native(&program, call, &[]) == verdict)
                .count()
        };
        assert_eq!((count("allow"), count("errno 1")), (306, 35));
    }

    #[test]
    fn the_program_is_short() {
        assert!(default(&[]).len() < 300, "{}", default(&[]).len());
    }
}
