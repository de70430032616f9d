//! A VMM that was taken over: `vmrt-vmm` which runs an attack in one of its threads as soon as the thread is confined.
//!
//! ```text
//! taken-over-vmm call CLASS CALL -- ARGUMENT...     makes a system call
//! taken-over-vmm when-told CALL -- ARGUMENT...      the file server makes it as soon as a share has the file `go` in its root
//! taken-over-vmm write -- ARGUMENT...               makes the directory `planted` in every directory that it has open, when told as above
//! taken-over-vmm read PATH... -- ARGUMENT...        tries to read files of the host, once the guest's shares are open
//! ```
//!
//! The arguments after `--` are those of `vmrt-vmm`.

use std::ffi::{CString, OsString};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use syscalls::Sysno;
use vmm::jail::seccomp::ThreadClass;
use vmm::jail::takeover::{self, Point};

/// Descriptors that are tried as the starts of paths.
const DESCRIPTORS: i32 = 512;

/// More `..` than any directory is deep.
const UP: &str = "../../../../../../../../../../../../../../../../../../../../";

enum Attack {
    Call(ThreadClass, String),
    WhenTold(String),
    Write,
    Read(Vec<String>),
}

static ATTACK: OnceLock<Attack> = OnceLock::new();

static HAS_WRITTEN: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let end = arguments.iter().position(|argument| argument == "--").expect("an attack ends with --");
    let vmm_arguments = arguments.split_off(end + 1);
    let words: Vec<String> = arguments[..end].iter().map(|word| word.to_str().expect("UTF-8").to_owned()).collect();
    let attack = match words.as_slice() {
        [kind, class, call] if kind == "call" => Attack::Call(thread_class(class), call.clone()),
        [kind] if kind == "write" => Attack::Write,
        [kind, call] if kind == "when-told" => Attack::WhenTold(call.clone()),
        [kind, paths @ ..] if kind == "read" => Attack::Read(paths.to_vec()),
        _ => panic!("unknown attack {words:?}"),
    };
    assert!(ATTACK.set(attack).is_ok());
    takeover::set(run);
    vmm::program::main(vmm_arguments)
}

fn thread_class(name: &str) -> ThreadClass {
    match name {
        "file-server" => ThreadClass::FileServer,
        "vcpu" => ThreadClass::Vcpu,
        "event-loop" => ThreadClass::EventLoop,
        "host-sockets" => ThreadClass::HostSockets,
        other => panic!("unknown class {other}"),
    }
}

fn run(point: Point) {
    match (ATTACK.get(), point) {
        (Some(Attack::Call(class, call)), Point::Confined(confined)) if *class == confined => {
            let result = make_call(call);
            eprintln!("attack: {call} returned {result}");
        }
        (Some(Attack::WhenTold(call)), Point::BlockingRequest) if is_told() => {
            let result = make_call(call);
            eprintln!("attack: {call} returned {result}");
        }
        (Some(Attack::Write), Point::BlockingRequest) if is_told() && !HAS_WRITTEN.swap(true, Ordering::Relaxed) => {
            let (made, refused): (Vec<i32>, Vec<i32>) =
                (3..DESCRIPTORS).map(make_planted).partition(|errno| *errno == 0);
            let read_only = refused.iter().filter(|errno| **errno == libc::EROFS).count();
            eprintln!("attack: planted {}, read-only {read_only}", made.len());
        }
        (Some(Attack::Read(paths)), Point::BlockingRequest) => {
            let read: Vec<String> = paths.iter().flat_map(|path| ways_to(path)).filter(|path| can_read(path)).collect();
            eprintln!("attack: {} of {} files were read: {read:?}", read.len(), paths.len());
        }
        _ => {}
    }
}

/// Makes a directory in the one that a descriptor refers to. Returns the error, or 0.
fn make_planted(directory: i32) -> i32 {
    // SAFETY: the path is a string with a NUL at its end.
    match unsafe { libc::mkdirat(directory, c"planted".as_ptr(), 0o777) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Whether a directory that is open has the file by which the test tells to begin.
fn is_told() -> bool {
    (3..DESCRIPTORS).any(|fd| can_open(fd, "go"))
}

/// Makes a system call by its name, or one with the arguments that the name tells, or a fault.
fn make_call(name: &str) -> i64 {
    let call = |number: Sysno, arguments: [i64; 4]| {
        let [a, b, c, d] = arguments;
        // SAFETY: the arguments are no valid pointers, and the filter ends the process before the kernel reads them. A call that is
        // not refused ends the test with a failure.
        unsafe { libc::syscall(i64::from(number.id()), a, b, c, d, -1, 0) }
    };
    match name {
        // SAFETY: the process is to end here.
        "fault" => unsafe { std::ptr::null::<i64>().read_volatile() },
        "abort" => std::process::abort(),
        "fork" => call(Sysno::clone, [i64::from(libc::SIGCHLD), 0, 0, 0]),
        "mmap-exec" => call(Sysno::mmap, [0, 4096, i64::from(libc::PROT_EXEC), i64::from(libc::MAP_PRIVATE)]),
        "mprotect-exec" => call(Sysno::mprotect, [0, 4096, i64::from(libc::PROT_EXEC), 0]),
        "ioctl-other" => call(Sysno::ioctl, [0, 0x5412, 0, 0]),
        "socket-netlink" => call(Sysno::socket, [i64::from(libc::AF_NETLINK), i64::from(libc::SOCK_RAW), 0, 0]),
        "signal-other" => call(Sysno::tgkill, [12_345, 12_345, 9, 0]),
        name => call(name.parse().expect("a system call"), [0; 4]),
    }
}

/// Names for a file of the host: by the root, the working directory, and every descriptor.
fn ways_to(path: &str) -> Vec<String> {
    let relative = path.trim_start_matches('/');
    let by_descriptor = (0..DESCRIPTORS).map(|fd| format!("{fd}/{UP}{relative}"));
    [path.to_owned(), format!("{UP}{relative}")].into_iter().chain(by_descriptor).collect()
}

fn can_read(path: &str) -> bool {
    can_open(libc::AT_FDCWD, path)
}

fn can_open(directory: i32, path: &str) -> bool {
    let path = CString::new(path).expect("no NUL");
    // SAFETY: the path is a string with a NUL at its end.
    let fd = unsafe { libc::openat(directory, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: the descriptor was just opened, and nothing else owns it.
        unsafe { libc::close(fd) };
    }
    fd >= 0
}
