//! System call filters, compiled here so that the guest's agent only has to hand them to its kernel.
//!
//! What a profile means is what runc with libseccomp makes of it. `seccompiler` was weighed and left out: its filters
//! have one action for all rules and one calling convention, and OCI profiles have several of both.

mod abi;
mod action;
mod program;
mod rules;

use agent::SeccompFilter;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSyscall};
use thiserror::Error;

use abi::Abi;
use action::{Action, KILL_THREAD};
use program::{Instruction, Table};
use rules::{Condition, Rule};

/// Why a profile cannot be used.
#[derive(Debug, Error)]
pub(crate) enum SeccompError {
    #[error("linux.seccomp: SCMP_ACT_NOTIFY is refused: its listener cannot be handed out of a virtual machine")]
    Notify,
    #[error("linux.seccomp: flag {0} is refused: it is about SCMP_ACT_NOTIFY, which a virtual machine cannot have")]
    Flag(LinuxSeccompFilterFlag),
    #[error("linux.seccomp: errnoRet {0} is too large")]
    ErrnoTooLarge(u32),
    #[error("linux.seccomp: action {0} takes no errnoRet")]
    NoErrno(LinuxSeccompAction),
    #[error("linux.seccomp: a rule for {0} has an argument with index {1}; there are 0 to 5")]
    Argument(String, usize),
    #[error("linux.seccomp: the profile is too long for the kernel")]
    TooLong,
}

/// `MAX_ERRNO` of the kernel.
const MAX_ERRNO: u32 = 4095;

/// `SECCOMP_RET_DATA` of the kernel.
const MAX_DATA: u32 = 0xffff;

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<SeccompFilter, SeccompError> {
    let flags = flags(profile)?;
    let program = program(profile)?.into_iter().map(Instruction::encode).collect();
    Ok(SeccompFilter { flags, program })
}

fn program(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let syscalls = profile.syscalls().as_deref().unwrap_or_default();
    let rules = rules(syscalls, default)?;
    let names: Vec<_> = syscalls.iter().flat_map(LinuxSyscall::names).map(String::as_str).collect();
    let unknown = unknown_action(profile);
    let table = |abi| Table {
        abi,
        verdicts: rules::verdicts(abi, &rules),
        default,
        beyond: unknown.and_then(|action| Some((rules::highest(abi, &names)?, action))),
    };
    let tables: Vec<_> = abis(profile).into_iter().map(table).collect();
    program::assemble(&tables, KILL_THREAD).ok_or(SeccompError::TooLong)
}

/// The machine's own calling convention is always one of them, as with libseccomp.
fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let given = profile.architectures().iter().flatten().filter_map(|arch| Abi::of(*arch));
    let mut abis: Vec<_> = given.chain([Abi::X86_64]).collect();
    abis.sort_unstable();
    abis.dedup();
    abis
}

/// Calls newer than the profile do not exist, rather than being forbidden: so programs fall back to older ones. As
/// runc does where the default is to forbid.
fn unknown_action(profile: &LinuxSeccomp) -> Option<Action> {
    const ENOSYS: u32 = 38;
    use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno, ScmpActLog, ScmpActTrace};
    let permissive = matches!(profile.default_action(), ScmpActAllow | ScmpActLog | ScmpActTrace);
    let same = profile.default_errno_ret() == Some(ENOSYS);
    (!permissive && !same).then(|| Action(ScmpActErrno.as_u32(Some(ENOSYS))))
}

/// A rule with the default action says nothing, so it is left out as by runc: even before one that says something.
fn rules(syscalls: &[LinuxSyscall], default: Action) -> Result<Vec<Rule<'_>>, SeccompError> {
    let mut rules = Vec::new();
    for syscall in syscalls {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let conditions = conditions(syscall)?;
        if action != default {
            let rule = |name| Rule { name, conditions: conditions.clone(), action };
            rules.extend(syscall.names().iter().map(String::as_str).map(rule));
        }
    }
    Ok(rules)
}

fn conditions(syscall: &LinuxSyscall) -> Result<Vec<Condition>, SeccompError> {
    let condition = |arg: &oci_spec::runtime::LinuxSeccompArg| {
        let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
        let name = || syscall.names().join(", ");
        index.map(|index| Condition::new(index, arg)).ok_or_else(|| SeccompError::Argument(name(), arg.index()))
    };
    syscall.args().iter().flatten().map(condition).collect()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, SeccompError> {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActNotify, ScmpActTrace};
    let limit = match action {
        ScmpActNotify => return Err(SeccompError::Notify),
        ScmpActErrno => MAX_ERRNO,
        ScmpActTrace => MAX_DATA,
        _ if errno.is_some() => return Err(SeccompError::NoErrno(action)),
        _ => 0,
    };
    match errno {
        Some(errno) if errno > limit => Err(SeccompError::ErrnoTooLarge(errno)),
        errno => Ok(Action(action.as_u32(errno))),
    }
}

/// `SECCOMP_FILTER_FLAG_*` of the kernel. A profile without a list gets runc's default.
fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    const TSYNC: u32 = 1;
    const LOG: u32 = 2;
    const SPEC_ALLOW: u32 = 4;
    use LinuxSeccompFilterFlag as Flag;
    let Some(flags) = profile.flags() else { return Ok(SPEC_ALLOW) };
    flags.iter().try_fold(0, |flags, flag| match flag {
        Flag::SeccompFilterFlagTsync => Ok(flags | TSYNC),
        Flag::SeccompFilterFlagLog => Ok(flags | LOG),
        Flag::SeccompFilterFlagSpecAllow => Ok(flags | SPEC_ALLOW),
        Flag::SeccompFilterFlagWaitKillableRecv => Err(SeccompError::Flag(*flag)),
    })
}

#[cfg(test)]
mod tests;
