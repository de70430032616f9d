//! The filter as a classic BPF program.
//!
//! The program checks the calling convention, and then finds the number by a binary search through ranges with the same verdict. Most
//! profiles allow long ranges of numbers, so the search takes about eight comparisons. A linear list would take hundreds.

use std::collections::BTreeMap;

use super::abi::{Abi, X32_BIT};
use super::action::Action;
use super::rules::{Comparison, Condition, Verdict};

// Instructions, as in the kernel's `linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `BPF_MAXINSNS` of the kernel: the maximum length of a program, in instructions.
const MAX_INSTRUCTIONS: usize = 4096;

/// An instruction: `struct sock_filter` of the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) value: u32,
}

impl Instruction {
    fn plain(code: u16, value: u32) -> Self {
        Self { code, if_true: 0, if_false: 0, value }
    }

    fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Self {
        Self { code, if_true, if_false, value }
    }

    /// Encodes the instruction for the protocol of the agent.
    pub(super) fn encode(self) -> u64 {
        let [if_true, if_false] = [self.if_true, self.if_false].map(u64::from);
        u64::from(self.code) << 48 | if_true << 40 | if_false << 32 | u64::from(self.value)
    }
}

type Code = Vec<Instruction>;

/// The verdicts of a filter for one calling convention.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) abi: Abi,
    pub(super) verdicts: BTreeMap<u32, Verdict>,
    /// The action for calls without a verdict.
    pub(super) default: Action,
    /// The highest number that the profile names, and the action for higher numbers. `None` if these get the default action.
    pub(super) unknown: Option<(u32, Action)>,
}

/// Assembles the program for `tables`, of which one must be for x86-64. `other` is the action for calls of all other conventions. `None`
/// if the program is too long for the kernel.
pub(super) fn assemble(tables: &[Table], other: Action) -> Option<Code> {
    let table = |abi| tables.iter().find(|table| table.abi == abi);
    let mut code = vec![Instruction::plain(LOAD, ARCHITECTURE)];
    let native = table(Abi::X86_64)?;
    let mut native_ranges = ranges(native);
    match table(Abi::X32) {
        Some(x32) => native_ranges.extend(ranges(x32)),
        // Otherwise the numbers of x32 are among the unknown numbers of x86-64.
        None => native_ranges.extend(native.unknown.is_none().then(|| (X32_BIT, action(other)))),
    }
    section(&mut code, Abi::X86_64.audit_arch(), &native_ranges);
    if let Some(x86) = table(Abi::X86) {
        section(&mut code, Abi::X86.audit_arch(), &ranges(x86));
    }
    code.extend(action(other));
    Some(code).filter(|code| code.len() <= MAX_INSTRUCTIONS)
}

/// Appends the code for one architecture, which always ends in a verdict. Calls of another architecture skip it.
fn section(code: &mut Code, audit_arch: u32, ranges: &[(u32, Code)]) {
    let search = search(ranges);
    code.push(Instruction::jump(JUMP_EQUAL, audit_arch, 1, 0));
    code.push(Instruction::plain(JUMP, length(&search) + 1));
    code.push(Instruction::plain(LOAD, NUMBER));
    code.extend(search);
}

/// The ranges of numbers with the same code, each with its first number and its code.
fn ranges(table: &Table) -> Vec<(u32, Code)> {
    let first = if table.abi == Abi::X32 { X32_BIT } else { 0 };
    let last = table.unknown.map_or(u32::MAX, |(last, _)| last);
    let mut ranges = vec![(first, action(table.default))];
    for (&number, verdict) in table.verdicts.range(..=last) {
        start_range(&mut ranges, number, verdict_code(table, verdict));
        start_range(&mut ranges, number + 1, action(table.default));
    }
    if let Some((last, unknown)) = table.unknown {
        start_range(&mut ranges, last + 1, action(unknown));
    }
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    ranges
}

/// Starts a range with the code `code` at `number`, which must not be below the first number of the last range.
fn start_range(ranges: &mut Vec<(u32, Code)>, number: u32, code: Code) {
    ranges.pop_if(|(first, _)| *first == number);
    ranges.push((number, code));
}

/// A binary search for the range of a number.
fn search(ranges: &[(u32, Code)]) -> Code {
    let middle = ranges.len() / 2;
    let (below, from) = ranges.split_at(middle);
    if below.is_empty() {
        return from.first().map(|(_, code)| code.clone()).unwrap_or_default();
    }
    let (low, high) = (search(below), search(from));
    let mut code = match u8::try_from(low.len()) {
        Ok(skip) => vec![Instruction::jump(JUMP_GREATER_OR_EQUAL, from[0].0, skip, 0)],
        // A conditional jump can skip at most 255 instructions.
        Err(_) => {
            vec![Instruction::jump(JUMP_GREATER_OR_EQUAL, from[0].0, 0, 1), Instruction::plain(JUMP, length(&low))]
        }
    };
    code.extend(low);
    code.extend(high);
    code
}

fn verdict_code(table: &Table, verdict: &Verdict) -> Code {
    if let Some(always) = verdict.always {
        return action(always);
    }
    let cases = verdict.cases.iter().flat_map(|(conditions, then)| case(table.abi, conditions, *then));
    cases.chain(action(table.default)).collect()
}

/// Returns the action if all conditions hold, and continues with the following code otherwise.
fn case(abi: Abi, conditions: &[Condition], then: Action) -> Code {
    conditions.iter().rev().fold(action(then), |rest, condition| {
        // This always fits: there are at most six conditions of at most six instructions.
        let skip = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let mut code = if abi.has_64_bit_arguments() {
            compare_64_bits(condition, skip)
        } else {
            compare_32_bits(condition, skip)
        };
        code.extend(rest);
        code
    })
}

fn action(action: Action) -> Code {
    vec![Instruction::plain(RETURN, action.0)]
}

fn length(code: &Code) -> u32 {
    // `assemble` refuses a program that is too long.
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// Splits a value into its upper and lower 32 bits.
fn split(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the casts select the upper and lower 32 bits")]
    [(value >> 32) as u32, value as u32]
}

fn load(condition: &Condition, upper: bool) -> Instruction {
    // Guests are little-endian.
    Instruction::plain(LOAD, ARGUMENTS + 8 * u32::from(condition.index) + if upper { 4 } else { 0 })
}

/// Compares the lower 32 bits of an argument. If the condition does not hold, the code skips the next `skip` instructions.
fn compare_32_bits(condition: &Condition, skip: u8) -> Code {
    let [_, value] = split(condition.value);
    let mut code = vec![load(condition, false)];
    if let Comparison::MaskedEqual(mask) = condition.comparison {
        code.push(Instruction::plain(AND, split(mask)[1]));
    }
    code.push(final_jump(condition.comparison, value, skip));
    code
}

/// The jump that decides a comparison: it skips the next `skip` instructions if the comparison does not hold.
fn final_jump(comparison: Comparison, value: u32, skip: u8) -> Instruction {
    match comparison {
        Comparison::Equal | Comparison::MaskedEqual(_) => Instruction::jump(JUMP_EQUAL, value, 0, skip),
        Comparison::NotEqual => Instruction::jump(JUMP_EQUAL, value, skip, 0),
        Comparison::Greater => Instruction::jump(JUMP_GREATER, value, 0, skip),
        Comparison::GreaterOrEqual => Instruction::jump(JUMP_GREATER_OR_EQUAL, value, 0, skip),
        Comparison::Less => Instruction::jump(JUMP_GREATER_OR_EQUAL, value, skip, 0),
        Comparison::LessOrEqual => Instruction::jump(JUMP_GREATER, value, skip, 0),
    }
}

/// Like [`compare_32_bits`] for 64 bits. BPF loads 32 bits at a time, so the upper half is compared first.
fn compare_64_bits(condition: &Condition, skip: u8) -> Code {
    let [upper, _] = split(condition.value);
    let lower_half = compare_32_bits(condition, skip);
    let count = u8::try_from(lower_half.len()).unwrap_or(u8::MAX);
    let mut code = vec![load(condition, true)];
    match condition.comparison {
        Comparison::MaskedEqual(mask) => {
            code.push(Instruction::plain(AND, split(mask)[0]));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + skip));
        }
        Comparison::Equal => code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + skip)),
        Comparison::NotEqual => code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count)),
        Comparison::Greater | Comparison::GreaterOrEqual => {
            code.push(Instruction::jump(JUMP_GREATER, upper, count + 1, 0));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + skip));
        }
        Comparison::Less | Comparison::LessOrEqual => {
            code.push(Instruction::jump(JUMP_GREATER, upper, count + 1 + skip, 0));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count));
        }
    }
    code.extend(lower_half);
    code
}
