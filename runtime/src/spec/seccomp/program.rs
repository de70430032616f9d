//! The filter as a program of classic BPF.
//!
//! It finds the calling convention, then the number by a binary search through ranges with one verdict: most profiles
//! allow long runs of numbers, so that takes some eight comparisons where a list would take hundreds.

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

/// The longest program the kernel takes, in instructions.
const LIMIT: usize = 4096;

/// One instruction.
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

    /// As the agent's protocol writes it.
    pub(super) fn encode(self) -> u64 {
        let [true_, false_] = [self.if_true, self.if_false].map(u64::from);
        u64::from(self.code) << 48 | true_ << 40 | false_ << 32 | u64::from(self.value)
    }
}

type Code = Vec<Instruction>;

/// What a filter does with the calls of one calling convention.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) abi: Abi,
    pub(super) verdicts: BTreeMap<u32, Verdict>,
    /// What happens to calls without a verdict.
    pub(super) default: Action,
    /// The last number the profile knows of, and what happens to those above.
    pub(super) beyond: Option<(u32, Action)>,
}

/// The program for `tables`, x86-64's among them; none where it is too long for the kernel. `foreign` is what happens
/// to calls of any other convention.
pub(super) fn assemble(tables: &[Table], foreign: Action) -> Option<Code> {
    let table = |abi| tables.iter().find(|table| table.abi == abi);
    let mut code = vec![Instruction::plain(LOAD, ARCHITECTURE)];
    let native = table(Abi::X86_64)?;
    let mut native_ranges = ranges(native);
    match table(Abi::X32) {
        Some(x32) => native_ranges.extend(ranges(x32)),
        // Otherwise x32's are among the numbers beyond all that x86-64's rules know.
        None => native_ranges.extend(native.beyond.is_none().then(|| (X32_BIT, action(foreign)))),
    }
    section(&mut code, Abi::X86_64.audit(), &native_ranges);
    if let Some(x86) = table(Abi::X86) {
        section(&mut code, Abi::X86.audit(), &ranges(x86));
    }
    code.extend(action(foreign));
    Some(code).filter(|code| code.len() <= LIMIT)
}

/// Everything for one architecture, which ends in a verdict; it is jumped over for others.
fn section(code: &mut Code, audit: u32, ranges: &[(u32, Code)]) {
    let search = search(ranges);
    code.push(Instruction::jump(JUMP_EQUAL, audit, 1, 0));
    code.push(Instruction::plain(JUMP, length(&search) + 1));
    code.push(Instruction::plain(LOAD, NUMBER));
    code.extend(search);
}

/// Ranges of numbers, each by its first, with what is done in it.
fn ranges(table: &Table) -> Vec<(u32, Code)> {
    let first = if table.abi == Abi::X32 { X32_BIT } else { 0 };
    let last = table.beyond.map_or(u32::MAX, |(last, _)| last);
    let mut ranges = vec![(first, action(table.default))];
    for (&number, verdict) in table.verdicts.range(..=last) {
        set_range(&mut ranges, number, verdict_code(table, verdict));
        set_range(&mut ranges, number + 1, action(table.default));
    }
    if let Some((last, beyond)) = table.beyond {
        set_range(&mut ranges, last + 1, action(beyond));
    }
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    ranges
}

/// From `number` on, which is not below the last range's first number, `code` is what is done.
fn set_range(ranges: &mut Vec<(u32, Code)>, number: u32, code: Code) {
    ranges.pop_if(|(first, _)| *first == number);
    ranges.push((number, code));
}

fn search(ranges: &[(u32, Code)]) -> Code {
    let middle = ranges.len() / 2;
    let (below, from) = ranges.split_at(middle);
    if below.is_empty() {
        return from.first().map(|(_, code)| code.clone()).unwrap_or_default();
    }
    let (low, high) = (search(below), search(from));
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![Instruction::jump(JUMP_GREATER_OR_EQUAL, from[0].0, over, 0)],
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

/// The action where all conditions hold; otherwise what follows.
fn case(abi: Abi, conditions: &[Condition], then: Action) -> Code {
    conditions.iter().rev().fold(action(then), |rest, condition| {
        // At most six conditions of six instructions: it always fits.
        let over = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let mut code = if abi.is_wide() { wide(condition, over) } else { narrow(condition, over) };
        code.extend(rest);
        code
    })
}

fn action(action: Action) -> Code {
    vec![Instruction::plain(RETURN, action.0)]
}

fn length(code: &Code) -> u32 {
    // A program that is too long is refused in the end.
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

/// Upper and lower half.
fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
    [(value >> 32) as u32, value as u32]
}

fn load(condition: &Condition, upper: bool) -> Instruction {
    // Guests are little-endian.
    Instruction::plain(LOAD, ARGUMENTS + 8 * u32::from(condition.index) + if upper { 4 } else { 0 })
}

/// Goes on where the condition holds; jumps over as many instructions where it does not.
fn narrow(condition: &Condition, over: u8) -> Code {
    let [_, value] = halves(condition.value);
    let mut code = vec![load(condition, false)];
    if let Comparison::MaskedEqual(mask) = condition.comparison {
        code.push(Instruction::plain(AND, halves(mask)[1]));
    }
    code.push(last(condition.comparison, value, over));
    code
}

/// The comparison that decides, whichever half it is of.
fn last(comparison: Comparison, value: u32, over: u8) -> Instruction {
    match comparison {
        Comparison::Equal | Comparison::MaskedEqual(_) => Instruction::jump(JUMP_EQUAL, value, 0, over),
        Comparison::NotEqual => Instruction::jump(JUMP_EQUAL, value, over, 0),
        Comparison::Greater => Instruction::jump(JUMP_GREATER, value, 0, over),
        Comparison::GreaterOrEqual => Instruction::jump(JUMP_GREATER_OR_EQUAL, value, 0, over),
        Comparison::Less => Instruction::jump(JUMP_GREATER_OR_EQUAL, value, over, 0),
        Comparison::LessOrEqual => Instruction::jump(JUMP_GREATER, value, over, 0),
    }
}

/// The same of 64 bits, of which a program sees one half at a time.
fn wide(condition: &Condition, over: u8) -> Code {
    let [upper, _] = halves(condition.value);
    let rest = narrow(condition, over);
    let count = u8::try_from(rest.len()).unwrap_or(u8::MAX);
    let mut code = vec![load(condition, true)];
    match condition.comparison {
        Comparison::MaskedEqual(mask) => {
            code.push(Instruction::plain(AND, halves(mask)[0]));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + over));
        }
        Comparison::Equal => code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + over)),
        Comparison::NotEqual => code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count)),
        Comparison::Greater | Comparison::GreaterOrEqual => {
            code.push(Instruction::jump(JUMP_GREATER, upper, count + 1, 0));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count + over));
        }
        Comparison::Less | Comparison::LessOrEqual => {
            code.push(Instruction::jump(JUMP_GREATER, upper, count + 1 + over, 0));
            code.push(Instruction::jump(JUMP_EQUAL, upper, 0, count));
        }
    }
    code.extend(rest);
    code
}
