//! The verdicts of a profile on the system calls of a calling convention.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::abi::Abi;
use super::action::Action;

/// A rule of a profile for a single system call.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    pub(super) name: &'a str,
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    /// The bits of this mask are equal.
    MaskedEqual(u64),
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    /// Index of the argument, from 0 to 5.
    pub(super) index: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

impl Condition {
    /// Converts a condition of a profile. `index` is the checked index of `arg`.
    pub(super) fn new(index: u8, arg: &LinuxSeccompArg) -> Self {
        let comparison = match arg.op() {
            Operator::ScmpCmpEq => Comparison::Equal,
            Operator::ScmpCmpNe => Comparison::NotEqual,
            Operator::ScmpCmpGt => Comparison::Greater,
            Operator::ScmpCmpGe => Comparison::GreaterOrEqual,
            Operator::ScmpCmpLt => Comparison::Less,
            Operator::ScmpCmpLe => Comparison::LessOrEqual,
            // Here, the first value of the specification is the mask and the second one the value.
            Operator::ScmpCmpMaskedEq => Comparison::MaskedEqual(arg.value()),
        };
        let value = match comparison {
            Comparison::MaskedEqual(mask) => arg.value_two().unwrap_or_default() & mask,
            _ => arg.value(),
        };
        Self { index, comparison, value }
    }
}

/// The actions for one system call.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Verdict {
    /// Alternatives in order. The first one of which all conditions hold gives the action.
    pub(super) cases: Vec<(Vec<Condition>, Action)>,
    /// The action without conditions. It has precedence over `cases`, as with libseccomp in runc.
    pub(super) always: Option<Action>,
}

/// The verdicts of a profile for a calling convention, by number. Calls without an entry get the default action.
pub(super) fn verdicts(abi: Abi, rules: &[Rule]) -> BTreeMap<u32, Verdict> {
    let mut verdicts = BTreeMap::<u32, Verdict>::new();
    for rule in rules {
        // Profiles are written for many kernels, so names that the convention does not have are ignored.
        if let Some(number) = abi.number(rule.name) {
            verdicts.entry(number).or_default().add(&rule.conditions, rule.action);
        }
        if let Some((number, argument)) = abi.multiplexed(rule.name).filter(|_| rule.conditions.is_empty()) {
            // A rule with conditions cannot apply here: the arguments are in memory, which a filter cannot read.
            let choice = Condition { index: 0, comparison: Comparison::Equal, value: argument };
            verdicts.entry(number).or_default().add(&[choice], rule.action);
        }
    }
    verdicts
}

impl Verdict {
    fn add(&mut self, conditions: &[Condition], action: Action) {
        match conditions {
            [] => self.always = self.always.or(Some(action)),
            conditions if repeats_argument(conditions) => {
                // As in runc, conditions on the same argument are alternatives.
                self.cases.extend(conditions.iter().map(|condition| (vec![*condition], action)));
            }
            conditions => self.cases.push((conditions.to_vec(), action)),
        }
    }
}

fn repeats_argument(conditions: &[Condition]) -> bool {
    let is_repeated = |(position, condition): (usize, &Condition)| {
        conditions[..position].iter().any(|other| other.index == condition.index)
    };
    conditions.iter().enumerate().any(is_repeated)
}

/// The highest number among the system calls `names`.
pub(super) fn highest_number(abi: Abi, names: &[&str]) -> Option<u32> {
    names.iter().filter_map(|name| abi.number(name)).max()
}
