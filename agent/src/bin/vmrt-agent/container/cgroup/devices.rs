//! Device access of a container's processes: `linux.resources.devices` as a BPF program of its cgroup.
//!
//! Later rules override earlier ones, separately for reading, writing and making nodes. So the program checks the rules
//! from the last to the first, and removes the access that a rule decides from the request.

use std::os::fd::BorrowedFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::Error;
use crate::sys::bpf::{self, Hook, Instruction};

/// Kinds of access (`BPF_DEVCG_ACC_*` of the kernel).
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// Kinds of devices (`BPF_DEVCG_DEV_*` of the kernel).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Offsets in the program's argument, the kernel's `struct bpf_cgroup_dev_ctx`.
const ACCESS_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

/// Registers: the result, the argument, and the parts of the request.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND_REGISTER: u8 = 2;
const ACCESS_REGISTER: u8 = 3;
const MAJOR_REGISTER: u8 = 4;
const MINOR_REGISTER: u8 = 5;
const SCRATCH: u8 = 6;

/// A rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Rule {
    allow: bool,
    /// `None` matches every value.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// The rules of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DeviceRules(Vec<Rule>);

impl Rule {
    const fn character(major: i32, minor: Option<i32>) -> Self {
        Self { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: ALL }
    }

    const fn make_nodes(kind: i32) -> Self {
        Self { allow: true, kind: Some(kind), major: None, minor: None, access: MAKE }
    }

    fn matches_everything(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// Access of every container, independent of its rules: making any node, and the default devices.
const ALWAYS: [Rule; 10] = [
    Rule::make_nodes(CHARACTER),
    Rule::make_nodes(BLOCK),
    Rule::character(1, Some(3)),
    Rule::character(1, Some(5)),
    Rule::character(1, Some(7)),
    Rule::character(1, Some(8)),
    Rule::character(1, Some(9)),
    Rule::character(5, Some(0)),
    Rule::character(5, Some(2)),
    Rule::character(136, None),
];

impl Default for DeviceRules {
    fn default() -> Self {
        Self(ALWAYS.to_vec())
    }
}

impl DeviceRules {
    /// Checks the rules of a specification. Without rules only [`ALWAYS`] is allowed.
    pub(crate) fn new(rules: &[LinuxDeviceCgroup]) -> Result<Self, Error> {
        let rules = rules.iter().map(parse_rule).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(rules.into_iter().chain(ALWAYS).collect()))
    }

    /// Applies the rules to the cgroup `directory`.
    pub(crate) fn apply(&self, directory: BorrowedFd<'_>) -> Result<(), Error> {
        if self.allows_everything() {
            return Ok(());
        }
        bpf::attach(Hook::DEVICE, &self.program(), directory)
            .map_err(Error::at("limit the devices of the container's cgroup"))
    }

    /// Whether a rule allows everything and no later one denies anything.
    fn allows_everything(&self) -> bool {
        let last = self.0.iter().rposition(Rule::matches_everything);
        last.is_some_and(|last| self.0[last..].iter().all(|rule| rule.allow))
    }

    fn program(&self) -> Vec<Instruction> {
        let mut program = vec![
            Instruction::load(KIND_REGISTER, CONTEXT, ACCESS_TYPE),
            Instruction::copy(ACCESS_REGISTER, KIND_REGISTER),
            Instruction::shift_right(ACCESS_REGISTER, 16),
            Instruction::and(KIND_REGISTER, 0xffff),
            Instruction::load(MAJOR_REGISTER, CONTEXT, MAJOR),
            Instruction::load(MINOR_REGISTER, CONTEXT, MINOR),
        ];
        for rule in self.0.iter().rev() {
            program.extend(compile_rule(rule));
            if rule.matches_everything() {
                break;
            }
        }
        program.extend([Instruction::set(RESULT, 0), Instruction::exit()]);
        program
    }
}

/// The instructions for one rule. Its jumps lead to the next rule.
fn compile_rule(rule: &Rule) -> Vec<Instruction> {
    let decision = match rule.allow {
        // Remove the allowed kinds of access. If none is left, grant the request.
        true => [
            Instruction::and(ACCESS_REGISTER, !rule.access),
            Instruction::jump_if_not(ACCESS_REGISTER, 0, 2),
            Instruction::set(RESULT, 1),
            Instruction::exit(),
        ]
        .to_vec(),
        // Deny the request if a remaining kind of access is denied.
        false => [
            Instruction::copy(SCRATCH, ACCESS_REGISTER),
            Instruction::and(SCRATCH, rule.access),
            Instruction::jump_if(SCRATCH, 0, 2),
            Instruction::set(RESULT, 0),
            Instruction::exit(),
        ]
        .to_vec(),
    };
    let conditions = [(KIND_REGISTER, rule.kind), (MAJOR_REGISTER, rule.major), (MINOR_REGISTER, rule.minor)];
    let conditions: Vec<_> = conditions.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
    let lengths = (1..=conditions.len()).rev().map(|left| left - 1 + decision.len());
    let jumps = conditions.iter().zip(lengths).map(|(&(register, value), length)| {
        // A rule has eight instructions at most.
        Instruction::jump_if_not(register, value, i16::try_from(length).unwrap_or(i16::MAX))
    });
    jumps.chain(decision.iter().copied()).collect()
}

fn parse_rule(rule: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let invalid = |reason: String| Error::invalid("linux.resources.devices", reason);
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => return Err(invalid("a rule cannot be for FIFOs".into())),
    };
    // The kernel compares 32 bits. A negative number matches every device.
    let number = |number: Option<i64>| match number {
        None | Some(..0) => Ok(None),
        Some(number) => {
            i32::try_from(number).map(Some).map_err(|_| invalid(format!("{number} is not a device number")))
        }
    };
    let access = rule.access().as_deref().unwrap_or("rwm").chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MAKE),
        other => Err(invalid(format!("{other:?} is not a kind of access"))),
    })?;
    Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    /// The result of the program, interpreted here.
    fn allows(rules: &DeviceRules, kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 11];
        let program = rules.program();
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.destination()), usize::from(step.source()));
            at += 1;
            match step.code() {
                0x61 => registers[to] = context[usize::try_from(step.offset()).unwrap() / 4].into(),
                0xbf => registers[to] = registers[from],
                0x77 => registers[to] >>= step.immediate(),
                0x57 => registers[to] &= i64::from(step.immediate()),
                0xb7 => registers[to] = step.immediate().into(),
                0x55 if registers[to] != i64::from(step.immediate()) => at += usize::try_from(step.offset()).unwrap(),
                0x15 if registers[to] == i64::from(step.immediate()) => at += usize::try_from(step.offset()).unwrap(),
                0x55 | 0x15 => {}
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn device_rule(allow: bool, typ: LinuxDeviceType, major: Option<i64>, access: &str) -> LinuxDeviceCgroup {
        let rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        rule.major(major.unwrap_or(-1)).build().unwrap()
    }

    #[test]
    fn by_default_only_the_default_devices_can_be_used() {
        let rules = DeviceRules::new(&[device_rule(false, LinuxDeviceType::A, None, "rwm")]).unwrap();
        assert!(allows(&rules, CHARACTER, READ | WRITE, 1, 3));
        assert!(allows(&rules, CHARACTER, READ | WRITE, 136, 5));
        assert!(allows(&rules, BLOCK, MAKE, 8, 0));
        assert!(!allows(&rules, BLOCK, READ, 8, 0));
        assert!(!allows(&rules, CHARACTER, READ, 10, 229));
        assert!(!allows(&DeviceRules::default(), BLOCK, READ, 8, 0));
    }

    #[test]
    fn later_rules_override_earlier_ones_for_each_kind_of_access() {
        let rules = [
            device_rule(false, LinuxDeviceType::A, None, "rwm"),
            device_rule(true, LinuxDeviceType::C, Some(10), "r"),
            device_rule(true, LinuxDeviceType::C, Some(10), "w"),
            device_rule(false, LinuxDeviceType::B, Some(8), "w"),
            device_rule(true, LinuxDeviceType::B, Some(8), "r"),
        ];
        let rules = DeviceRules::new(&rules).unwrap();
        assert!(allows(&rules, CHARACTER, READ | WRITE, 10, 229));
        assert!(!allows(&rules, CHARACTER, READ, 11, 0));
        assert!(allows(&rules, BLOCK, READ, 8, 1));
        assert!(!allows(&rules, BLOCK, READ | WRITE, 8, 1));
    }

    #[test]
    fn a_privileged_container_needs_no_program() {
        let everything = device_rule(true, LinuxDeviceType::A, None, "rwm");
        let rules = DeviceRules::new(std::slice::from_ref(&everything)).unwrap();
        assert!(allows(&rules, BLOCK, READ | WRITE, 8, 0));
        assert!(rules.allows_everything());
        let rules = DeviceRules::new(&[everything.clone(), device_rule(false, LinuxDeviceType::C, None, "w")]).unwrap();
        assert!(!rules.allows_everything());
    }

    #[test]
    fn unknown_kinds_of_access_are_refused() {
        assert!(DeviceRules::new(&[device_rule(true, LinuxDeviceType::C, None, "rx")]).is_err());
    }
}
