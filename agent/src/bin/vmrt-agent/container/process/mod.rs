//! The specification of a process: its program, user and attributes.

pub(crate) mod affinity;
pub(crate) mod capabilities;
pub(crate) mod program;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod terminal;

use std::ffi::CString;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use agent::TerminalSize;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use crate::container::process::affinity::Affinity;
use crate::container::process::capabilities::CapabilityPlan;
use crate::container::process::scheduling::Scheduling;
use crate::container::process::seccomp::Filter;
use crate::container::rootfs::paths;
use crate::error::Error;

/// Maximum number of bytes to read of an image's `/etc/passwd`.
const PASSWD_LIMIT: u64 = 1 << 20;

/// The specification's `process`, checked.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    /// Program and arguments; never empty.
    pub(crate) args: Vec<CString>,
    /// Environment.
    pub(crate) env: Vec<CString>,
    /// Working directory, an absolute path.
    pub(crate) cwd: PathBuf,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// Size of the terminal.
    pub(crate) console_size: Option<TerminalSize>,
    /// User id.
    pub(crate) uid: Uid,
    /// The kernel's OOM score adjustment, -1000 to 1000.
    pub(crate) oom_score_adj: Option<i32>,
    /// The CPUs of a process that is not a container's first one.
    pub(crate) exec_affinity: Option<Affinity>,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Mode,
    capabilities: CapabilityPlan,
    rlimits: Vec<(Resource, Rlimit)>,
    /// Whether programs that it executes cannot gain privileges.
    pub(crate) no_new_privileges: bool,
    /// Scheduling policy and I/O priority.
    pub(crate) scheduling: Scheduling,
}

impl ProcessPlan {
    /// Checks a process.
    pub(crate) fn new(process: &Process) -> Result<Self, Error> {
        refuse_unsupported(process)?;
        let args = c_strings("process.args", process.args())?;
        if args.is_empty() {
            return Err(Error::invalid("process.args", "must not be empty"));
        }
        if !process.cwd().is_absolute() {
            let reason = format!("{:?} is not an absolute path", process.cwd());
            return Err(Error::invalid("process.cwd", reason));
        }
        let user = process.user();
        let id = |id: u32, field: &str| match id {
            u32::MAX => Err(Error::invalid(field, "4294967295 is not a valid id")),
            id => Ok(id),
        };
        Ok(Self {
            args,
            env: c_strings("process.env", process.env())?,
            cwd: process.cwd().clone(),
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| console_size(size.height(), size.width())),
            uid: Uid::from_raw(id(user.uid(), "process.user.uid")?),
            gid: Gid::from_raw(id(user.gid(), "process.user.gid")?),
            groups: user.additional_gids().iter().flatten().copied().map(Gid::from_raw).collect(),
            umask: Mode::from_raw_mode(user.umask().unwrap_or(0o022)),
            capabilities: CapabilityPlan::new(process.capabilities().as_ref()),
            rlimits: process.rlimits().iter().flatten().map(convert_rlimit).collect::<Result<_, _>>()?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            scheduling: Scheduling::new(process)?,
            exec_affinity: Affinity::new(process)?,
        })
    }

    /// Makes the working directory if it is missing, as runc does for a container's first process.
    pub(crate) fn make_cwd(&self, root: BorrowedFd<'_>) -> Result<(), Error> {
        match paths::open_or_make_directories(root, &self.cwd) {
            // `chdir` reports the error.
            Ok(_) | Err(Errno::NOTDIR | Errno::ACCESS | Errno::ROFS) => Ok(()),
            Err(error) => Err(Error::on("make working directory", &self.cwd)(error)),
        }
    }

    /// Gives the caller all attributes of this process except its program. Steps that need privileges come first.
    /// `seccomp` is a filter to install while the caller still has privileges. Returns the environment.
    pub(crate) fn assume(&self, root: BorrowedFd<'_>, seccomp: Option<&Filter>) -> Result<Vec<CString>, Error> {
        for (resource, limit) in &self.rlimits {
            rustix::process::setrlimit(*resource, *limit).map_err(Error::at(format!("set limit {resource:?}")))?;
        }
        self.scheduling.apply()?;
        let env = self.env_with_home(root);
        rustix::process::umask(self.umask);
        seccomp.map_or(Ok(()), Filter::install)?;
        self.capabilities.apply_bounding()?;
        rustix::thread::set_keep_capabilities(true).map_err(Error::at("keep capabilities"))?;
        // A directory may be accessible only to root, or only to the process's user.
        let entered = self.enter_cwd();
        self.change_user()?;
        rustix::thread::set_keep_capabilities(false).map_err(Error::at("stop keeping capabilities"))?;
        entered.or_else(|_| self.enter_cwd())?;
        self.capabilities.apply()?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(Error::at("set no_new_privs"))?;
        }
        Ok(env)
    }

    fn change_user(&self) -> Result<(), Error> {
        let step = || format!("become user {}:{}", self.uid.as_raw(), self.gid.as_raw());
        rustix::thread::set_thread_groups(&self.groups).map_err(Error::at("set supplementary groups"))?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid).map_err(Error::at(step()))?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid).map_err(Error::at(step()))
    }

    /// Enters the working directory. A directory that is not reachable from the container's root, such as one behind a
    /// descriptor of the agent in `/proc/self/fd`, would be a way out of the container.
    fn enter_cwd(&self) -> Result<(), Error> {
        let step = || format!("chdir to cwd ({:?}) set in config.json failed", self.cwd);
        rustix::process::chdir(&self.cwd).map_err(|error| Error::at(step())(error))?;
        let inside = rustix::process::getcwd(Vec::new()).map_err(|error| Error::at(step())(error))?;
        match inside.as_bytes().first() {
            Some(b'/') => Ok(()),
            _ => Err(Error::invalid("process.cwd", "is outside the container")),
        }
    }

    fn env_with_home(&self, root: BorrowedFd<'_>) -> Vec<CString> {
        let mut env = without_duplicates(&self.env);
        env.retain(|variable| variable.as_bytes() != b"HOME=");
        if !env.iter().any(|variable| variable.as_bytes().starts_with(b"HOME=")) {
            let home = find_home(root, self.uid).unwrap_or_else(|| "/".into());
            env.extend(CString::new(format!("HOME={home}")));
        }
        env
    }
}

/// The last variable of each name.
fn without_duplicates(env: &[CString]) -> Vec<CString> {
    fn name(variable: &CString) -> Option<&[u8]> {
        variable.as_bytes().split(|byte| *byte == b'=').next()
    }
    let is_last =
        |(index, variable): &(usize, &CString)| !env[index + 1..].iter().any(|later| name(later) == name(variable));
    env.iter().enumerate().filter(is_last).map(|(_, variable)| variable.clone()).collect()
}

fn refuse_unsupported(process: &Process) -> Result<(), Error> {
    let unsupported = [
        ("process.apparmorProfile", process.apparmor_profile().as_deref().is_some_and(|name| !name.is_empty())),
        ("process.selinuxLabel", process.selinux_label().as_deref().is_some_and(|name| !name.is_empty())),
    ];
    match unsupported.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(Error::invalid(*field, "is not supported")),
        None => Ok(()),
    }
}

fn c_strings(field: &str, strings: &Option<Vec<String>>) -> Result<Vec<CString>, Error> {
    let strings = strings.iter().flatten().map(|string| CString::new(string.as_str()));
    strings.collect::<Result<_, _>>().map_err(|_| Error::invalid(field, "holds a NUL character"))
}

/// Reduces sizes that a terminal cannot have to the maximum.
fn console_size(height: u64, width: u64) -> TerminalSize {
    let cut = |value| u16::try_from(value).unwrap_or(u16::MAX);
    TerminalSize { rows: cut(height), columns: cut(width) }
}

fn convert_rlimit(limit: &PosixRlimit) -> Result<(Resource, Rlimit), Error> {
    if limit.soft() > limit.hard() {
        let field = format!("process.rlimits: {}", limit.typ());
        return Err(Error::invalid(field, "the soft limit is higher than the hard one"));
    }
    let finite = |value: u64| Some(value).filter(|value| *value != u64::MAX);
    Ok((resource(limit.typ()), Rlimit { current: finite(limit.soft()), maximum: finite(limit.hard()) }))
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// The home directory of `uid` in the container's `/etc/passwd`. `None` if that file is missing or unreadable, or not a
/// regular file.
fn find_home(root: BorrowedFd<'_>, uid: Uid) -> Option<String> {
    let file = paths::open(root, Path::new("/etc/passwd"), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut users = String::new();
    std::fs::File::from(file).take(PASSWD_LIMIT).read_to_string(&mut users).ok()?;
    parse_home(&users, uid)
}

fn parse_home(users: &str, uid: Uid) -> Option<String> {
    let user = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut user = user.filter(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid.as_raw()));
    user.next()?.get(5).filter(|home| !home.is_empty()).map(|&home| home.to_owned())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{PosixRlimitBuilder, ProcessBuilder};

    use super::*;

    #[test]
    fn invalid_and_unsupported_properties_are_refused_by_name() {
        let refused = |process: ProcessBuilder| ProcessPlan::new(&process.build().unwrap()).unwrap_err().to_string();
        assert!(refused(ProcessBuilder::default().args(Vec::new())).starts_with("process.args"));
        assert!(refused(ProcessBuilder::default().cwd("relative")).starts_with("process.cwd"));
        assert!(refused(ProcessBuilder::default().env(["A=\0".to_owned()])).starts_with("process.env"));
        assert!(refused(ProcessBuilder::default().apparmor_profile("x")).starts_with("process.apparmorProfile"));
        let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(2_u64).hard(1_u64);
        let limits = vec![limit.build().unwrap()];
        assert!(refused(ProcessBuilder::default().rlimits(limits)).contains("RLIMIT_NOFILE"));
    }

    #[test]
    fn of_variables_with_one_name_the_last_is_used() {
        let strings = |list: &[&str]| list.iter().map(|text| CString::new(*text).unwrap()).collect::<Vec<_>>();
        let env = strings(&["A=1", "B=2", "AB=3", "A=", "B=4=5"]);
        assert_eq!(without_duplicates(&env), strings(&["AB=3", "A=", "B=4=5"]));
    }

    #[test]
    fn the_home_directory_is_found_by_the_user_id() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/sh\nno:x:34:34:::\n";
        assert_eq!(parse_home(users, Uid::from_raw(33)).as_deref(), Some("/var/www"));
        assert_eq!(parse_home(users, Uid::from_raw(34)), None);
        assert_eq!(parse_home(users, Uid::from_raw(1)), None);
    }

    #[test]
    fn the_maximum_value_means_no_limit() {
        let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitCore).soft(0_u64).hard(u64::MAX);
        let (_, limit) = convert_rlimit(&limit.build().unwrap()).unwrap();
        assert_eq!((limit.current, limit.maximum), (Some(0), None));
    }
}
