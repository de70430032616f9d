//! Tests compiled filters with an interpreter of BPF.

use serde_json::{Value, json};

use super::abi::X32_BIT;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0;
const NOSYS: u32 = 0x0005_0026;

fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

/// Runs a filter for a system call and returns its verdict.
fn run(program: &[Instruction], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let (mut position, mut register) = (0, 0);
    loop {
        let Instruction { code, if_true, if_false, value } = program[position];
        let offset = |condition: bool| usize::from(if condition { if_true } else { if_false });
        position += 1;
        match code {
            0x20 => register = field(audit, number, &arguments, value),
            0x54 => register &= value,
            0x05 => position += value as usize,
            0x15 => position += offset(register == value),
            0x25 => position += offset(register > value),
            0x35 => position += offset(register >= value),
            0x06 => return value,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// Reads a field of the kernel's `struct seccomp_data`.
fn field(audit: u32, number: u32, arguments: &[u64; 6], offset: u32) -> u32 {
    let mut data = [number.to_le_bytes(), audit.to_le_bytes(), [0; 4], [0; 4]].concat();
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let start = offset as usize;
    u32::from_le_bytes(data[start..start + 4].try_into().unwrap())
}

fn profile(value: &Value) -> LinuxSeccomp {
    serde_json::from_value(value.clone()).unwrap()
}

fn compiled(value: &Value) -> Vec<Instruction> {
    program(&profile(value)).unwrap()
}

fn refusal(value: &Value) -> String {
    compile(&profile(value)).unwrap_err().to_string()
}

/// Compiles a profile that allows all calls without a rule in `syscalls`.
fn deny(syscalls: &Value) -> Vec<Instruction> {
    compiled(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls}))
}

/// Runs a filter for a system call of x86-64.
fn verdict_for(program: &[Instruction], name: &str, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(program, X86_64, Abi::X86_64.number(name).unwrap(), all)
}

#[test]
fn each_call_gets_the_action_of_its_rule() {
    let actions = [
        ("SCMP_ACT_KILL", KILL),
        ("SCMP_ACT_KILL_THREAD", KILL),
        ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
        ("SCMP_ACT_TRAP", 0x0003_0000),
        ("SCMP_ACT_ERRNO", errno(1)),
        ("SCMP_ACT_TRACE", 0x7ff0_0001),
        ("SCMP_ACT_LOG", 0x7ffc_0000),
    ];
    for (action, value) in actions {
        let program = deny(&json!([{"names": ["mkdir", "no_such_call", "rmdir"], "action": action}]));
        let verdicts = ["read", "mkdir", "rmdir", "creat"].map(|name| verdict_for(&program, name, &[]));
        assert_eq!(verdicts, [ALLOW, value, value, ALLOW], "{action}");
    }
}

#[test]
fn a_rule_sets_the_error_number() {
    let mkdir = |value: u32| json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": value}]);
    assert_eq!(verdict_for(&deny(&mkdir(28)), "mkdir", &[]), errno(28));
    assert_eq!(verdict_for(&deny(&mkdir(0)), "mkdir", &[]), errno(0));
    let error = refusal(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": mkdir(4096)}));
    assert_eq!(error, "linux.seccomp: errnoRet 4096 is too large");
    let program = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": []}));
    assert_eq!(verdict_for(&program, "mkdir", &[]), NOSYS);
}

#[test]
fn all_64_bits_of_arguments_are_compared() {
    const BIG: u64 = 0x1_0000_0005;
    let samples = [0, 4, 5, 6, BIG - 1, BIG, BIG + 1, 0x2_0000_0004, 0x2_0000_0005, u64::MAX];
    type Holds = fn(u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("EQ", |value| value == BIG),
        ("NE", |value| value != BIG),
        ("GT", |value| value > BIG),
        ("GE", |value| value >= BIG),
        ("LT", |value| value < BIG),
        ("LE", |value| value <= BIG),
    ];
    for (operator, holds) in operators {
        let args = json!([{"index": 5, "value": BIG, "op": format!("SCMP_CMP_{operator}")}]);
        let program = deny(&json!([{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": args}]));
        for value in samples {
            let expected = if holds(value) { errno(1) } else { ALLOW };
            assert_eq!(verdict_for(&program, "ioctl", &[0, 0, 0, 0, 0, value]), expected, "{value:#x} {operator}");
        }
    }
}

#[test]
fn a_mask_selects_the_compared_bits() {
    let mask = 0xf0_0000_00f0_u64;
    let args = json!([{"index": 1, "value": mask, "valueTwo": 0x50_0000_0031_u64, "op": "SCMP_CMP_MASKED_EQ"}]);
    let program = deny(&json!([{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": args}]));
    let verdict = |value| verdict_for(&program, "clone", &[0, value]);
    assert_eq!(verdict(0x5f_0000_003f), errno(1));
    assert_eq!(verdict(0x50_ffff_ff30), errno(1));
    assert_eq!([verdict(0x30), verdict(0x50_0000_0000), verdict(0x60_0000_0030)], [ALLOW; 3]);
}

#[test]
fn conditions_on_the_same_argument_are_alternatives() {
    let arg = |index: u32, value: u32| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rule = |args: Value| deny(&json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": args}]));
    let both = rule(json!([arg(0, 2), arg(1, 3)]));
    assert_eq!(
        [&[2, 3][..], &[2, 4], &[1, 3]].map(|args| verdict_for(&both, "socket", args)),
        [errno(1), ALLOW, ALLOW]
    );
    let either = rule(json!([arg(0, 2), arg(0, 3)]));
    assert_eq!([2, 3, 4].map(|value| verdict_for(&either, "socket", &[value])), [errno(1), errno(1), ALLOW]);
}

#[test]
fn the_first_matching_rule_applies_and_one_without_conditions_has_precedence() {
    let when = |value: u32, errno: u32| {
        let args = json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
        json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args})
    };
    let program = deny(&json!([when(1, 5), when(2, 6), when(2, 7)]));
    assert_eq!([0, 1, 2].map(|value| verdict_for(&program, "personality", &[value])), [ALLOW, errno(5), errno(6)]);
    let always = json!({"names": ["personality"], "action": "SCMP_ACT_TRAP"});
    let program = deny(&json!([when(1, 5), always]));
    assert_eq!(verdict_for(&program, "personality", &[1]), 0x0003_0000);
}

#[test]
fn calls_newer_than_a_forbidding_profile_fail_with_enosys() {
    let profile = |action: &str| {
        let allowed = json!([{"names": ["read", "statx"], "action": "SCMP_ACT_ALLOW"}]);
        compiled(&json!({"defaultAction": action, "syscalls": allowed}))
    };
    let forbidding = profile("SCMP_ACT_ERRNO");
    let verdicts =
        ["read", "mkdir", "statx", "io_pgetevents", "clone3"].map(|name| verdict_for(&forbidding, name, &[]));
    assert_eq!(verdicts, [ALLOW, errno(1), ALLOW, NOSYS, NOSYS]);
    assert_eq!(run(&forbidding, X86_64, X32_BIT, [0; 6]), NOSYS);
    assert_eq!(verdict_for(&profile("SCMP_ACT_LOG"), "clone3", &[]), 0x7ffc_0000);
    assert_eq!(verdict_for(&profile("SCMP_ACT_KILL_PROCESS"), "clone3", &[]), NOSYS);
}

#[test]
fn calls_of_other_conventions_use_their_numbers_or_kill_the_thread() {
    let rules = json!([{"names": ["write", "execve", "socket"], "action": "SCMP_ACT_ERRNO"}]);
    let own = deny(&rules);
    assert_eq!([X86, AARCH64].map(|audit| run(&own, audit, 4, [0; 6])), [KILL; 2]);
    assert_eq!(run(&own, X86_64, X32_BIT | 1, [0; 6]), KILL);
    let archs = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"];
    let all = compiled(&json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs, "syscalls": rules}));
    let verdict = |audit, number| run(&all, audit, number, [1, 0, 0, 0, 0, 0]);
    assert_eq!([1, X32_BIT | 1, X32_BIT | 520].map(|number| verdict(X86_64, number)), [errno(1); 3]);
    assert_eq!([0, X32_BIT, X32_BIT | 59].map(|number| verdict(X86_64, number)), [ALLOW; 3]);
    // `write`, `execve`, `socket` and `socketcall` with its number; then `read`.
    assert_eq!([4, 11, 359, 102].map(|number| verdict(X86, number)), [errno(1); 4]);
    assert_eq!([verdict(X86, 3), run(&all, X86, 102, [2, 0, 0, 0, 0, 0])], [ALLOW; 2]);
    assert_eq!(verdict(AARCH64, 1), KILL);
}

#[test]
fn only_the_lower_32_bits_of_32_bit_arguments_are_compared() {
    let args = json!([{"index": 0, "value": u64::MAX, "op": "SCMP_CMP_EQ"}]);
    let rules = json!([{"names": ["close"], "action": "SCMP_ACT_ERRNO", "args": args}]);
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": rules});
    let program = compiled(&profile);
    let first = |value| [value, 0, 0, 0, 0, 0];
    assert_eq!(run(&program, X86, 6, first(u64::from(u32::MAX))), errno(1));
    assert_eq!(run(&program, X86_64, 3, first(u64::from(u32::MAX))), ALLOW);
}

#[test]
fn unsupported_profiles_are_refused_by_name() {
    assert!(refusal(&json!({"defaultAction": "SCMP_ACT_NOTIFY"})).contains("SCMP_ACT_NOTIFY"));
    let flags = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]});
    assert!(refusal(&flags).contains("WAIT_KILLABLE_RECV"));
    let rule = |more: Value| {
        let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_TRAP"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refusal(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    };
    assert_eq!(rule(json!({"errnoRet": 1})), "linux.seccomp: action SCMP_ACT_TRAP takes no errnoRet");
    let sixth = json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]});
    assert_eq!(rule(sixth), "linux.seccomp: a rule for read has an argument with index 6; there are 0 to 5");
}

#[test]
fn flags_are_those_of_the_kernel_and_default_to_those_of_runc() {
    let flags = |value: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        profile.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        compile(&self::profile(&profile)).unwrap().flags
    };
    assert_eq!(flags(json!({})), 4);
    assert_eq!(flags(json!({"flags": []})), 0);
    let all = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
    assert_eq!(flags(json!({"flags": all})), 7);
}

#[test]
fn every_call_of_a_long_profile_gets_its_verdict() {
    let known: Vec<_> = (0..512_usize).filter_map(syscalls::x86_64::Sysno::new).collect();
    let allowed: Vec<_> = known.iter().step_by(2).map(|call| call.name()).collect();
    let archs = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    let rules = json!([{"names": allowed, "action": "SCMP_ACT_ALLOW"}]);
    let program = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": archs, "syscalls": rules}));
    let last = Abi::X86_64.number(allowed.last().unwrap()).unwrap();
    for call in &known {
        let number = u32::try_from(call.id()).unwrap();
        let expected = match number {
            _ if allowed.contains(&call.name()) => ALLOW,
            number if number > last => NOSYS,
            _ => errno(1),
        };
        assert_eq!(run(&program, X86_64, number, [0; 6]), expected, "{call}");
    }
}

#[test]
fn a_program_that_is_too_long_is_refused() {
    let args: Vec<_> = (0..2000).map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"})).collect();
    let rules = json!([{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args}]);
    let error = refusal(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert_eq!(error, "linux.seccomp: the profile is too long for the kernel");
}

#[test]
fn an_instruction_is_encoded_as_one_number() {
    let instruction = Instruction { code: 0x15, if_true: 2, if_false: 3, value: X86_64 };
    assert_eq!(instruction.encode(), 0x0015_0203_c000_003e);
}
