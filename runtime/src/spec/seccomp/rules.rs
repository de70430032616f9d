//! What a profile says of each system call of one calling convention.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::abi::Abi;
use super::action::Action;

/// One system call of one rule of a profile.
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
    /// Equal in the bits of this mask.
    MaskedEqual(u64),
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    /// Which argument: 0 to 5.
    pub(super) index: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

impl Condition {
    /// `arg.index` is one of those there are.
    pub(super) fn new(index: u8, arg: &LinuxSeccompArg) -> Self {
        let comparison = match arg.op() {
            Operator::ScmpCmpEq => Comparison::Equal,
            Operator::ScmpCmpNe => Comparison::NotEqual,
            Operator::ScmpCmpGt => Comparison::Greater,
            Operator::ScmpCmpGe => Comparison::GreaterOrEqual,
            Operator::ScmpCmpLt => Comparison::Less,
            Operator::ScmpCmpLe => Comparison::LessOrEqual,
            // The first value is the mask here.
            Operator::ScmpCmpMaskedEq => Comparison::MaskedEqual(arg.value()),
        };
        let value = match comparison {
            Comparison::MaskedEqual(mask) => arg.value_two().unwrap_or_default() & mask,
            _ => arg.value(),
        };
        Self { index, comparison, value }
    }
}

/// What happens to one system call.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Verdict {
    /// Alternatives, each with the conditions that have to hold together; the first that applies counts.
    pub(super) cases: Vec<(Vec<Condition>, Action)>,
    /// Without conditions. It wins over every case, as with runc's libseccomp.
    pub(super) always: Option<Action>,
}

/// The verdicts of a profile for one calling convention, by number. Calls with no entry get the default action.
pub(super) fn verdicts(abi: Abi, rules: &[Rule]) -> BTreeMap<u32, Verdict> {
    let mut verdicts = BTreeMap::<u32, Verdict>::new();
    for rule in rules {
        // Names that this convention does not have are passed over, as a profile is written for many kernels.
        if let Some(number) = abi.number(rule.name) {
            verdicts.entry(number).or_default().add(&rule.conditions, rule.action);
        }
        if let Some((number, argument)) = abi.multiplexed(rule.name).filter(|_| rule.conditions.is_empty()) {
            // What the other arguments are is in memory then, where no filter can look.
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
                // Two conditions on one argument are alternatives, as runc reads them.
                self.cases.extend(conditions.iter().map(|condition| (vec![*condition], action)));
            }
            conditions => self.cases.push((conditions.to_vec(), action)),
        }
    }
}

fn repeats_argument(conditions: &[Condition]) -> bool {
    let same = |(place, one): (usize, &Condition)| conditions[..place].iter().any(|other| other.index == one.index);
    conditions.iter().enumerate().any(same)
}

/// The highest number that a profile's rules name, whatever they say of it.
pub(super) fn highest(abi: Abi, names: &[&str]) -> Option<u32> {
    names.iter().filter_map(|name| abi.number(name)).max()
}
