//! The eBPF program that decides about devices on cgroup v2, which has no `devices` controller.
//!
//! The context is `struct bpf_cgroup_dev_ctx`: `access_type` (access << 16 | type), `major`, `minor`. The program returns 1 to allow.

/// A rule of the device controller. Source: config-linux.md, "Allowed Device list".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    pub allow: bool,
    /// `a`, `b` or `c`.
    pub kind: char,
    /// `None` is every number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of `r`, `w` and `m`.
    pub access: String,
}

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// One eBPF instruction: opcode, registers, offset, immediate. Source: `Documentation/bpf/standardization/instruction-set.rst`.
fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(dst) << 8
        | u64::from(src) << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The program for `rules`: the last that matches decides, without any the answer is no.
pub(crate) fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    // r2 = type, r3 = access, r4 = major, r5 = minor
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
        if is_any(rule) {
            // The verifier refuses a program with instructions that are never reached.
            return program;
        }
    }
    program.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// Whether every access of every device matches: what containers' lists begin with.
fn is_any(rule: &DeviceRule) -> bool {
    rule.kind == 'a' && rule.major.is_none() && rule.minor.is_none() && bits(rule) == READ | WRITE | MKNOD
}

fn bits(rule: &DeviceRule) -> i32 {
    rule.access.chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    })
}

fn block(rule: &DeviceRule) -> Vec<u64> {
    let access = bits(rule);
    let mut tests: Vec<(u8, u8, u8, i32)> = Vec::new();
    let mut head = Vec::new();
    match rule.kind {
        'b' => tests.push((JUMP_NOT_EQUAL, 2, 0, BLOCK)),
        'c' => tests.push((JUMP_NOT_EQUAL, 2, 0, CHARACTER)),
        _ => {}
    }
    if access != READ | WRITE | MKNOD {
        // Every bit that is asked for must be in the rule: access & rule == access.
        head.extend([op(MOVE_REGISTER, 1, 3, 0, 0), op(AND, 1, 0, 0, access)]);
        tests.push((JUMP_NOT_EQUAL_REGISTER, 1, 3, 0));
    }
    if let Some(major) = rule.major {
        tests.push((JUMP_NOT_EQUAL, 4, 0, major as i32));
    }
    if let Some(minor) = rule.minor {
        tests.push((JUMP_NOT_EQUAL, 5, 0, minor as i32));
    }
    let count = tests.len();
    let jumps = tests.into_iter().enumerate().map(|(index, (code, dst, src, immediate))| {
        // Past the remaining tests and the two instructions of the verdict.
        op(code, dst, src, (count - index + 1) as i16, immediate)
    });
    head.extend(jumps);
    head.extend([op(MOVE, 0, 0, 0, i32::from(rule.allow)), op(EXIT, 0, 0, 0, 0)]);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for these few instructions.
    fn run(program: &[u64], kind: i32, access: i32, major: u32, minor: u32) -> u64 {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let word = program[at];
            let (dst, src) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, immediate) = ((word >> 16) as i16, (word >> 32) as i32 as u64);
            at += 1;
            match word as u8 {
                LOAD_WORD => registers[dst] = u64::from(context[offset as usize / 4]),
                MOVE => registers[dst] = immediate,
                MOVE_REGISTER => registers[dst] = registers[src],
                AND => registers[dst] &= immediate,
                SHIFT_RIGHT => registers[dst] >>= immediate,
                JUMP_NOT_EQUAL if registers[dst] != immediate => at += offset as usize,
                JUMP_NOT_EQUAL_REGISTER if registers[dst] != registers[src] => at += offset as usize,
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => return registers[0],
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: access.to_owned() }
    }

    #[test]
    fn only_named_devices_open() {
        let program = compile(&[rule(false, 'a', None, None, "rwm"), rule(true, 'c', Some(1), Some(3), "rw")]);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 1, 3), 1);
        assert_eq!(run(&program, CHARACTER, READ | MKNOD, 1, 3), 0);
        assert_eq!(run(&program, CHARACTER, READ, 1, 5), 0);
        assert_eq!(run(&program, BLOCK, READ, 1, 3), 0);
    }

    #[test]
    fn the_last_rule_decides() {
        let program = compile(&[rule(true, 'a', None, None, "rwm"), rule(false, 'b', Some(8), None, "rwm")]);
        assert_eq!(run(&program, BLOCK, READ, 8, 1), 0);
        assert_eq!(run(&program, BLOCK, READ, 9, 1), 1);
    }

    #[test]
    fn nothing_stands_behind_a_rule_that_always_matches() {
        let all = rule(false, 'a', None, None, "rwm");
        assert_eq!(compile(std::slice::from_ref(&all)).len(), 8);
        assert_eq!(compile(&[rule(true, 'c', Some(1), Some(3), "rwm"), all.clone()]), compile(&[all]));
    }

    #[test]
    fn no_rule_is_no() {
        assert_eq!(run(&compile(&[]), CHARACTER, READ, 1, 3), 0);
    }
}
