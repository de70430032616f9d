//! System calls that no crate in use wraps, each as one safe function (or a function that says what it needs).

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use vsock::{SockaddrLike, VsockAddr};

/// What a system call gives.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The error of a system call that gave -1.
pub(crate) fn check(result: impl TryInto<i64>) -> Result<i64> {
    match result.try_into() {
        Ok(-1) | Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        Ok(value) => Ok(value),
    }
}

/// The new descriptor that a system call gave.
pub(crate) fn owned(result: c_int) -> Result<OwnedFd> {
    let fd = check(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel just made this descriptor for this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which side of [`clone3`] goes on.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The process that called: pid of the new one, and a descriptor of it.
    Parent(i32, OwnedFd),
}

/// Makes a process in new namespaces (`CLONE_NEW*` in `flags`), born in the cgroup whose directory is `cgroup`, or in the
/// caller's. With `CLONE_PARENT`, it is a child of the caller's parent.
///
/// # Safety
///
/// The calling process has only one thread: the child goes on with a copy of its memory, locks included.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // A sibling has the caller's own exit signal, and none may be given.
    let exit_signal = if flags & CLONE_PARENT == 0 { u64::from(libc::SIGCHLD.cast_unsigned()) } else { 0 };
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | into_cgroup | u64::from(libc::CLONE_PIDFD.cast_unsigned()),
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().cast_unsigned())),
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the length given and `pidfd` outlives the call. No stack is given and
    // memory is not shared, so the child returns here like a fork's, and the caller vouches for a single thread.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    match i32::try_from(pid).map_err(|_| Errno::OVERFLOW)? {
        0 => Ok(Cloned::Child),
        pid => owned(pidfd).map(|pidfd| Cloned::Parent(pid, pidfd)),
    }
}

/// The kernel's flag for [`clone3`]; the C library's constant of that name is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's flag for [`clone3`] that makes the new process the caller's sibling.
pub(crate) const CLONE_PARENT: u64 = 0x8000;

/// The kernel's `struct clone_args`.
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The kernel's `struct mount_attr`: changes to the attributes of a mount.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub(crate) propagation: u64,
    userns_fd: u64,
}

impl MountAttr {
    /// A change of flags.
    pub(crate) fn flags(set: u64, clear: u64) -> Self {
        Self { set, clear, ..Self::default() }
    }

    /// A change of propagation.
    pub(crate) fn propagation(propagation: u64) -> Self {
        Self { propagation, ..Self::default() }
    }

    /// Other owners, by the mappings of a user namespace. For a mount that is attached nowhere yet.
    pub(crate) fn id_mapping(namespace: BorrowedFd<'_>) -> Self {
        let userns_fd = namespace.as_raw_fd().cast_unsigned().into();
        Self { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..Self::default() }
    }
}

/// The attribute of a mount that is read-only.
pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Makes the mount `mount` is in read-only, and those below it if `recursive`.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    mount_setattr(mount, recursive, &MountAttr::flags(READ_ONLY, 0))
}

/// Changes the attributes of the mount `mount` is in, and of those below it if `recursive`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let (flags, empty) = (libc::AT_EMPTY_PATH | recursive, c"");
    // SAFETY: the path is a string that ends in NUL, `attr` a valid mount_attr of the length given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of `linux/vm_sockets.h`, which takes a `timeval`.
const VSOCK_CONNECT_TIMEOUT: c_int = 6;

/// Connects a blocking vsock socket within `seconds`.
pub(crate) fn connect_vsock(socket: &OwnedFd, address: &VsockAddr, seconds: i64) -> Result<()> {
    let limit = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_raw_fd();
    // SAFETY: `limit` is a timeval of the size given, which the kernel reads during the call only.
    check(unsafe { libc::setsockopt(fd, libc::AF_VSOCK, VSOCK_CONNECT_TIMEOUT, (&raw const limit).cast(), size) })?;
    // SAFETY: the address is valid for the length it gives itself, and read during the call only.
    check(unsafe { libc::connect(fd, address.as_ptr(), address.len()) })?;
    Ok(())
}

fn close_between(first: c_uint, last: c_uint) -> Result<()> {
    // SAFETY: no memory is passed; the one caller uses no descriptor of that range afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

fn child_signal() -> Result<libc::sigset_t> {
    // SAFETY: sigset_t consists of integers; sigemptyset makes it valid and sigaddset keeps it so.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        Ok(set)
    }
}

/// Blocks `SIGCHLD` and gives a descriptor that is readable when one is pending.
pub(crate) fn child_signals() -> Result<OwnedFd> {
    let set = child_signal()?;
    // SAFETY: `set` is a valid signal set, and the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) })?;
    // SAFETY: as above; -1 asks for a new descriptor.
    owned(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Undoes what the agent (and Rust's runtime) did to signals, and what comes of the agent's scheduling, so that a program starts with the
/// defaults.
pub(crate) fn set_defaults() -> Result<()> {
    /// How late timers may be, in nanoseconds: what the kernel gives its first process.
    const TIMER_SLACK: libc::c_ulong = 50_000;
    let set = child_signal()?;
    // SAFETY: takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK) })?;
    // SAFETY: `set` is a valid signal set, SIG_DFL a valid disposition.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()))?;
    }
    Ok(())
}

/// Executes the program at `path`; returns only if that failed.
pub(crate) fn execute(path: &CString, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: path and every element of the two NULL-ended arrays are strings that end in NUL and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Brings an interface up in the network namespace of the caller.
pub(crate) fn interface_up(name: &[u8]) -> Result<()> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, kind, 0) })?;
    // SAFETY: ifreq consists of integers and a union of plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).map_err(|_| Errno::INVAL)?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, and `request` is one with a name that ends in NUL.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// Asks a driver for something by a number.
pub(crate) fn ioctl_number(device: BorrowedFd<'_>, request: libc::Ioctl, number: u32) -> Result<()> {
    // SAFETY: such a request takes its argument as it is and passes no memory.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, libc::c_ulong::from(number)) })?;
    Ok(())
}

/// Sets the execution domain of the caller.
pub(crate) fn personality(domain: c_ulong) -> Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::personality(domain) })?;
    Ok(())
}

/// Sets the I/O priority of the caller: class and level as `ioprio_set(2)` packs them.
pub(crate) fn set_io_priority(class: c_int, level: c_int) -> Result<()> {
    const WHO_PROCESS: c_int = 1;
    const CLASS_SHIFT: c_int = 13;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level) })?;
    Ok(())
}

/// The kernel's `struct sched_attr`, first version.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct SchedulerAttr {
    /// [`SCHEDULER_ATTR_SIZE`].
    pub(crate) size: u32,
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// Nice value, for the policies that have one.
    pub(crate) nice: i32,
    /// Static priority, for the real-time policies.
    pub(crate) priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) period: u64,
}

impl SchedulerAttr {
    /// That of a process for which nobody has asked for another.
    pub(crate) fn usual() -> Self {
        Self { size: SCHEDULER_ATTR_SIZE, policy: libc::SCHED_OTHER.cast_unsigned(), ..Self::default() }
    }
}

/// Length of [`SchedulerAttr`], as the kernel knows its first version (`SCHED_ATTR_SIZE_VER0`).
pub(crate) const SCHEDULER_ATTR_SIZE: u32 = 48;

/// The process that calls, where a pid is asked for.
pub(crate) const CALLER: i32 = 0;

/// Sets the scheduling policy of the process `pid`.
pub(crate) fn set_scheduler(pid: i32, attr: &SchedulerAttr) -> Result<()> {
    const { assert!(size_of::<SchedulerAttr>() == SCHEDULER_ATTR_SIZE as usize) };
    // SAFETY: `attr` is a valid sched_attr; the length in it is that of a prefix the kernel reads, at most all of it.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, ptr::from_ref(attr), 0) })?;
    Ok(())
}

/// Makes the time of day differ by `nanoseconds` from what it was: at once.
pub(crate) fn step_clock(nanoseconds: i64) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    adjust_clock(|request| {
        request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        // With `ADJ_NANO` the second part is nanoseconds, and it may not be negative.
        request.time =
            libc::timeval { tv_sec: nanoseconds.div_euclid(SECOND), tv_usec: nanoseconds.rem_euclid(SECOND) };
    })
}

/// Lets the time of day run faster, or slower, by a 2000th until it differs by `microseconds` from what it would have been.
pub(crate) fn slew_clock(microseconds: i64) -> Result<()> {
    adjust_clock(|request| {
        request.modes = libc::ADJ_OFFSET_SINGLESHOT;
        request.offset = microseconds;
    })
}

fn adjust_clock(set: impl FnOnce(&mut libc::timex)) -> Result<()> {
    // SAFETY: a timex holds only numbers, for which zero is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    set(&mut request);
    // SAFETY: `request` is a valid timex, which the kernel reads and writes.
    check(unsafe { libc::adjtimex(&raw mut request) })?;
    Ok(())
}

/// Filters the system calls of the caller by `program`, at most 65535 instructions; `flags` are
/// `SECCOMP_FILTER_FLAG_*`.
pub(crate) fn set_seccomp(flags: u32, program: &[libc::sock_filter]) -> Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` is a valid sock_fprog with as many instructions as it says; the kernel copies them and writes
    // nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    Ok(())
}

/// Makes `streams` descriptors 0 to 2 of the caller and `others` those from 3 up, which `execve` closes; every other
/// descriptor is closed now. Gives those of `others` that were given.
///
/// For a process that is about to execute a program and uses no descriptor afterwards but these.
pub(crate) fn keep_only<const N: usize>(
    streams: [BorrowedFd<'_>; 3],
    others: &[Option<BorrowedFd<'_>>; N],
) -> Result<[Option<OwnedFd>; N]> {
    /// Above every number that is about to be used.
    const ASIDE: RawFd = 64;
    let all = streams.into_iter().map(Some).chain(others.iter().copied());
    let aside = all.map(|fd| fd.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, ASIDE)).transpose());
    let aside = aside.collect::<Result<Vec<_>>>()?;
    close_between(0, c_uint::try_from(ASIDE - 1).map_err(|_| Errno::INVAL)?)?;
    let mut kept = [const { None }; N];
    for (number, from) in (0..).zip(&aside) {
        let Some(from) = from else { continue };
        let flags = if number < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: the number is free: every descriptor below ASIDE was closed above.
        let to = owned(unsafe { libc::dup3(from.as_raw_fd(), number, flags) })?;
        match usize::try_from(number - 3) {
            Ok(index) => kept[index] = Some(to),
            Err(_) => std::mem::forget(to),
        }
    }
    std::mem::forget(aside);
    close_between(c_uint::try_from(ASIDE).map_err(|_| Errno::INVAL)?, c_uint::MAX)?;
    Ok(kept)
}
