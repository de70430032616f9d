//! Compiles seccomp profiles to BPF programs, which the guest's agent passes to its kernel.
//!
//! A profile means the same as in runc with libseccomp. The `seccompiler` crate is not suitable: its filters have one action for all
//! rules and one calling convention, and OCI profiles have several of both.

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
    #[error("linux.seccomp: SCMP_ACT_NOTIFY is refused: its file descriptor cannot leave the virtual machine")]
    Notify,
    #[error(
        "linux.seccomp: flag {0} is refused: it applies only to SCMP_ACT_NOTIFY, which is impossible with a virtual machine"
    )]
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
///
/// # Errors
///
/// Fails if the profile is invalid, cannot work in a virtual machine, or needs a program that is too long for the kernel.
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
    let unknown_action = unknown_action(profile);
    let table = |abi| Table {
        abi,
        verdicts: rules::verdicts(abi, &rules),
        default,
        unknown: unknown_action.and_then(|action| Some((rules::highest_number(abi, &names)?, action))),
    };
    let tables: Vec<_> = abis(profile).into_iter().map(table).collect();
    program::assemble(&tables, KILL_THREAD).ok_or(SeccompError::TooLong)
}

/// The calling conventions of a profile. As with libseccomp, the native one is always among them.
fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let listed = profile.architectures().iter().flatten().filter_map(|arch| Abi::of(*arch));
    let mut abis: Vec<_> = listed.chain([Abi::X86_64]).collect();
    abis.sort_unstable();
    abis.dedup();
    abis
}

/// The action for system calls that are newer than the profile. As in runc, they fail with `ENOSYS` if the default action forbids calls,
/// so that programs fall back to older calls. `None` if such calls get the default action.
fn unknown_action(profile: &LinuxSeccomp) -> Option<Action> {
    const ENOSYS: u32 = 38;
    use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno, ScmpActLog, ScmpActTrace};
    let is_permissive = matches!(profile.default_action(), ScmpActAllow | ScmpActLog | ScmpActTrace);
    let is_default_enosys = profile.default_errno_ret() == Some(ENOSYS);
    (!is_permissive && !is_default_enosys).then(|| Action(ScmpActErrno.as_u32(Some(ENOSYS))))
}

/// The rules of a profile. As in runc, rules with the default action are ignored, even if they precede a rule with another action.
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

/// The `SECCOMP_FILTER_FLAG_*` of a profile. A profile without a list gets runc's default.
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
