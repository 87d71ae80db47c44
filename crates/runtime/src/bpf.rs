//! From an OCI seccomp profile to a classic BPF program.
//!
//! Our own compiler because a profile needs an action per rule, with an errno each, where seccompiler has one for all. A call is
//! found by binary search over ranges of numbers instead of a chain of comparisons: at most ten instructions of some four hundred run.
//! Meaning follows libseccomp as runc uses it: the rules of a call with conditions come before the one without, and what no rule
//! matches gets the default action. Source: seccomp(2), `Documentation/userspace-api/seccomp_filter.rst`.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use crate::syscall_table;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("action {0} is not supported")]
    Action(&'static str),
    #[error("{0} is not supported")]
    Field(&'static str),
    #[error("system call {call}: argument {index} does not exist, there are 0 to 5")]
    Argument { call: String, index: usize },
    #[error("the profile is too long: {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// One instruction, as `struct sock_filter`.
fn op(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// From here on numbers are of the x32 ABI, which has none of its own architecture; no kernel of a distribution has it on.
const X32: u32 = 0x4000_0000;

/// The kernel's `BPF_MAXINSNS`.
const MAX_LENGTH: usize = 4096;

const RETURN_ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// Compiles a profile for this machine's architecture.
///
/// Calls by a foreign architecture (32-bit programs) get the default action. Calls that the architecture does not have are skipped:
/// profiles name those of all.
///
/// # Errors
/// For actions that need another process (notify, trace), and for arguments that do not exist.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Vec<u64>, CompileError> {
    if profile.listener_path().is_some() {
        return Err(CompileError::Field("listenerPath"));
    }
    if profile.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(CompileError::Field("flags"));
    }
    let default = verdict(profile.default_action(), profile.default_errno_ret())?;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut program = vec![
        op(LOAD, 0, 0, ARCHITECTURE),
        op(JUMP_EQUAL, 1, 0, NATIVE),
        op(RETURN, 0, 0, default),
        op(LOAD, 0, 0, NUMBER),
        op(JUMP_GREATER_EQUAL, 0, 1, X32),
        op(RETURN, 0, 0, RETURN_ERRNO | ENOSYS),
    ];
    program.extend(search(&ranges(default, rules)?));
    match program.len() {
        length if length > MAX_LENGTH => Err(CompileError::TooLong(length)),
        _ => Ok(program),
    }
}

/// What a filter returns for an action.
fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, CompileError> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActErrno => RETURN_ERRNO | (errno.unwrap_or(EPERM) & 0xffff),
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActNotify => return Err(CompileError::Action("SCMP_ACT_NOTIFY")),
        LinuxSeccompAction::ScmpActTrace => return Err(CompileError::Action("SCMP_ACT_TRACE")),
    })
}

/// Numbers from `start` up to the next range do the same: `code` ends with a return on every path.
struct Range {
    start: u32,
    code: Vec<u64>,
}

fn ranges(default: u32, rules: &[LinuxSyscall]) -> Result<Vec<Range>, CompileError> {
    let otherwise = vec![op(RETURN, 0, 0, default)];
    let mut calls: Vec<(u32, &str)> = syscall_table::NUMBERS
        .iter()
        .filter(|(name, _)| rules.iter().any(|rule| rule.names().iter().any(|named| named == name)))
        .map(|(name, number)| (*number, *name))
        .collect();
    calls.sort_unstable();
    let mut ranges = vec![Range { start: 0, code: otherwise.clone() }];
    let mut push = |start: u32, code: Vec<u64>| match ranges.last_mut() {
        Some(last) if last.start == start => last.code = code,
        Some(last) if last.code == code => {}
        _ => ranges.push(Range { start, code }),
    };
    for (number, name) in calls {
        push(number, call(name, default, rules)?);
        push(number + 1, otherwise.clone());
    }
    // A range that replaced a default one may equal its neighbour now.
    ranges.dedup_by(|next, previous| next.code == previous.code);
    Ok(ranges)
}

/// The code for one call, entered with its number loaded.
fn call(name: &str, default: u32, rules: &[LinuxSyscall]) -> Result<Vec<u64>, CompileError> {
    let mut code = Vec::new();
    let mut last = default;
    let mut unconditional = rules.iter().filter(|rule| conditions(rule).is_empty());
    if let Some(rule) = unconditional.find(|rule| rule.names().iter().any(|named| named == name)) {
        last = verdict(rule.action(), rule.errno_ret())?;
    }
    for rule in rules.iter().filter(|rule| rule.names().iter().any(|named| named == name)) {
        if !conditions(rule).is_empty() {
            code.extend(block(name, rule)?);
        }
    }
    code.push(op(RETURN, 0, 0, last));
    Ok(code)
}

fn conditions(rule: &LinuxSyscall) -> &[LinuxSeccompArg] {
    rule.args().as_deref().unwrap_or_default()
}

/// Where a jump goes.
#[derive(Clone, Copy)]
enum To {
    /// The instructions after this one that many further.
    Skip(u8),
    /// The condition holds: to the next one.
    Holds,
    /// It does not: past the rule.
    Fails,
}

/// An instruction whose jumps are not resolved.
struct Draft {
    code: u16,
    k: u32,
    yes: To,
    no: To,
}

/// A rule with conditions: returns its verdict if all hold, else falls through.
fn block(name: &str, rule: &LinuxSyscall) -> Result<Vec<u64>, CompileError> {
    let verdict = verdict(rule.action(), rule.errno_ret())?;
    let mut drafts: Vec<(usize, Draft)> = Vec::new();
    for condition in conditions(rule) {
        if condition.index() > 5 {
            return Err(CompileError::Argument { call: name.to_owned(), index: condition.index() });
        }
        let test = test(condition);
        let end = drafts.len() + test.len();
        drafts.extend(test.into_iter().map(|draft| (end, draft)));
    }
    let past = drafts.len() + 1;
    let mut code: Vec<u64> = drafts
        .iter()
        .enumerate()
        .map(|(at, (end, draft))| {
            let resolve = |to: To| match to {
                To::Skip(count) => count,
                To::Holds => (end - at - 1) as u8,
                To::Fails => (past - at - 1) as u8,
            };
            match draft.code {
                LOAD | AND => op(draft.code, 0, 0, draft.k),
                code => op(code, resolve(draft.yes), resolve(draft.no), draft.k),
            }
        })
        .collect();
    code.push(op(RETURN, 0, 0, verdict));
    Ok(code)
}

/// A comparison of a 64-bit argument, high half first.
fn test(condition: &LinuxSeccompArg) -> Vec<Draft> {
    let low = ARGUMENTS + 8 * condition.index() as u32;
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let straight = |code, k| Draft { code, k, yes: To::Skip(0), no: To::Skip(0) };
    let jump = |code, k, yes, no| Draft { code, k, yes, no };
    let (h, l) = halves(condition.value());
    // Past the high half: a greater one decides, an equal one leaves it to the low half.
    let ordered = |low_code, when_greater: To, low_yes: To, low_no: To, when_less: To| {
        vec![
            straight(LOAD, high),
            jump(JUMP_GREATER, h, when_greater, To::Skip(0)),
            jump(JUMP_EQUAL, h, To::Skip(0), when_less),
            straight(LOAD, low),
            jump(low_code, l, low_yes, low_no),
        ]
    };
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            straight(LOAD, high),
            jump(JUMP_EQUAL, h, To::Skip(0), To::Fails),
            straight(LOAD, low),
            jump(JUMP_EQUAL, l, To::Holds, To::Fails),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            straight(LOAD, high),
            jump(JUMP_EQUAL, h, To::Skip(0), To::Holds),
            straight(LOAD, low),
            jump(JUMP_EQUAL, l, To::Fails, To::Holds),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // `value` is the mask, `valueTwo` what must be left.
            let (eh, el) = halves(condition.value_two().unwrap_or(0));
            vec![
                straight(LOAD, high),
                straight(AND, h),
                jump(JUMP_EQUAL, eh, To::Skip(0), To::Fails),
                straight(LOAD, low),
                straight(AND, l),
                jump(JUMP_EQUAL, el, To::Holds, To::Fails),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGt => ordered(JUMP_GREATER, To::Holds, To::Holds, To::Fails, To::Fails),
        LinuxSeccompOperator::ScmpCmpGe => ordered(JUMP_GREATER_EQUAL, To::Holds, To::Holds, To::Fails, To::Fails),
        LinuxSeccompOperator::ScmpCmpLt => ordered(JUMP_GREATER_EQUAL, To::Fails, To::Fails, To::Holds, To::Holds),
        LinuxSeccompOperator::ScmpCmpLe => ordered(JUMP_GREATER, To::Fails, To::Fails, To::Holds, To::Holds),
    }
}

/// A tree of comparisons that ends in the code of the range with the call's number.
fn search(ranges: &[Range]) -> Vec<u64> {
    let [one] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let Some(first) = right.first() else { return Vec::new() };
        let (start, left, right) = (first.start, search(left), search(right));
        let mut code = match u8::try_from(left.len()) {
            Ok(distance) => vec![op(JUMP_GREATER_EQUAL, distance, 0, start)],
            // Conditional jumps reach 255 instructions.
            Err(_) => vec![op(JUMP_GREATER_EQUAL, 0, 1, start), op(JUMP, 0, 0, left.len() as u32)],
        };
        code.extend(left);
        code.extend(right);
        return code;
    };
    one.code.clone()
}

#[cfg(test)]
pub(crate) mod tests {
    use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSyscallBuilder};

    use super::*;

    /// Runs a program on a call, as the kernel would.
    pub(crate) fn run(program: &[u64], architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            offset => {
                let argument = arguments.get((offset - ARGUMENTS) as usize / 8).copied().unwrap_or(0);
                if (offset - ARGUMENTS).is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let word = program[at];
            let (jt, jf, k) = ((word >> 16) as u8 as usize, (word >> 24) as u8 as usize, (word >> 32) as u32);
            at += 1;
            let holds = match word as u16 {
                LOAD => {
                    value = load(k);
                    continue;
                }
                AND => {
                    value &= k;
                    continue;
                }
                JUMP => {
                    at += k as usize;
                    continue;
                }
                RETURN => return k,
                JUMP_EQUAL => value == k,
                JUMP_GREATER => value > k,
                JUMP_GREATER_EQUAL => value >= k,
                code => panic!("unknown instruction {code:#x}"),
            };
            at += if holds { jt } else { jf };
        }
    }

    /// A verdict in words.
    pub(crate) fn words(verdict: u32) -> String {
        match verdict {
            0x7fff_0000 => "allow".to_owned(),
            0x8000_0000 => "kill".to_owned(),
            verdict if verdict & 0xffff_0000 == RETURN_ERRNO => format!("errno {}", verdict & 0xffff),
            verdict => format!("{verdict:#x}"),
        }
    }

    pub(crate) fn native(program: &[u64], call: &str, arguments: &[u64]) -> String {
        let number = syscall_table::number(call).unwrap_or_else(|| panic!("no call {call}"));
        words(run(program, NATIVE, number, arguments))
    }

    fn rule(names: &[&str], action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        LinuxSyscallBuilder::default().names(names).action(action).args(args).build().unwrap()
    }

    fn profile(rules: Vec<LinuxSyscall>) -> Vec<u64> {
        let profile = LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActErrno)
            .default_errno_ret(38u32)
            .syscalls(rules)
            .build()
            .unwrap();
        compile(&profile).unwrap()
    }

    #[test]
    fn every_call_gets_its_own_verdict() {
        let every_second = |from: usize| -> Vec<&str> {
            syscall_table::NUMBERS.iter().skip(from).step_by(2).map(|(name, _)| *name).collect()
        };
        let (even, odd) = (every_second(0), every_second(1));
        let program = profile(vec![
            rule(&even, LinuxSeccompAction::ScmpActAllow, vec![]),
            rule(&odd, LinuxSeccompAction::ScmpActErrno, vec![]),
        ]);
        for (names, expected) in [(even, "allow"), (odd, "errno 1")] {
            for name in names {
                assert_eq!(native(&program, name, &[]), expected, "{name}");
            }
        }
        assert_eq!(words(run(&program, NATIVE, 5000, &[])), "errno 38");
    }

    #[test]
    fn foreign_calls_never_pass() {
        let program = profile(vec![rule(&["read"], LinuxSeccompAction::ScmpActAllow, vec![])]);
        let read = syscall_table::number("read").unwrap();
        assert_eq!(words(run(&program, 0x4000_0003, read, &[])), "errno 38");
        assert_eq!(words(run(&program, NATIVE, X32 | read, &[])), "errno 38");
        assert_eq!(words(run(&program, NATIVE, u32::MAX, &[])), "errno 38");
    }

    #[test]
    fn comparisons_are_of_64_bits() {
        use LinuxSeccompOperator::*;
        let values = [0, 1, 5, 6, u64::from(u32::MAX), 1 << 32, 5 << 32 | 5, 5 << 32 | 6, 6 << 32, u64::MAX];
        for value in values {
            for operator in [ScmpCmpNe, ScmpCmpLt, ScmpCmpLe, ScmpCmpEq, ScmpCmpGe, ScmpCmpGt] {
                let arg = LinuxSeccompArgBuilder::default().index(1usize).value(value).op(operator).build().unwrap();
                let program = profile(vec![rule(&["read"], LinuxSeccompAction::ScmpActAllow, vec![arg])]);
                for actual in values {
                    let holds = match operator {
                        ScmpCmpNe => actual != value,
                        ScmpCmpLt => actual < value,
                        ScmpCmpLe => actual <= value,
                        ScmpCmpEq => actual == value,
                        ScmpCmpGe => actual >= value,
                        ScmpCmpGt => actual > value,
                        ScmpCmpMaskedEq => unreachable!("not in the list"),
                    };
                    let expected = if holds { "allow" } else { "errno 38" };
                    assert_eq!(native(&program, "read", &[0, actual]), expected, "{actual} {operator:?} {value}");
                }
            }
        }
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold() {
        let arg = |index: usize, value: u64| {
            let op = LinuxSeccompOperator::ScmpCmpEq;
            LinuxSeccompArgBuilder::default().index(index).value(value).op(op).build().unwrap()
        };
        let program = profile(vec![
            rule(&["socket"], LinuxSeccompAction::ScmpActAllow, vec![]),
            rule(&["socket"], LinuxSeccompAction::ScmpActErrno, vec![arg(0, 16), arg(2, 9)]),
        ]);
        assert_eq!(native(&program, "socket", &[16, 3, 9]), "errno 1");
        assert_eq!(native(&program, "socket", &[16, 3, 0]), "allow");
        assert_eq!(native(&program, "socket", &[2, 3, 9]), "allow");
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let profile = |action| LinuxSeccompBuilder::default().default_action(action).syscalls(vec![]).build().unwrap();
        let error = compile(&profile(LinuxSeccompAction::ScmpActNotify)).unwrap_err();
        assert_eq!(error.to_string(), "action SCMP_ACT_NOTIFY is not supported");
    }
}
