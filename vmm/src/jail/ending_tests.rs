//! Tests what ends a confined thread, each in a process of its own under the policies of the product.

use std::io::{Read, pipe};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use syscalls::Sysno;

use super::seccomp::{self, ThreadClass};
use super::{JailError, faults};

const CLASSES: [(ThreadClass, &str); 5] = [
    (ThreadClass::EventLoop, "event loop"),
    (ThreadClass::FileServer, "file server"),
    (ThreadClass::HostSockets, "host sockets"),
    (ThreadClass::TemplateSaver, "template saver"),
    (ThreadClass::Vcpu, "vCPU"),
];

/// Calls that no class may make, whatever their arguments are.
const FORBIDDEN: &[Sysno] = &[
    Sysno::execve,
    Sysno::execveat,
    Sysno::fork,
    Sysno::vfork,
    Sysno::ptrace,
    Sysno::mount,
    Sysno::umount2,
    Sysno::move_mount,
    Sysno::open_tree,
    Sysno::fsopen,
    Sysno::mount_setattr,
    Sysno::pivot_root,
    Sysno::chroot,
    Sysno::setns,
    Sysno::unshare,
    Sysno::setuid,
    Sysno::setresuid,
    Sysno::setresgid,
    Sysno::setgroups,
    Sysno::kill,
    Sysno::tkill,
    Sysno::pidfd_open,
    Sysno::pidfd_getfd,
    Sysno::pidfd_send_signal,
    Sysno::bpf,
    Sysno::keyctl,
    Sysno::add_key,
    Sysno::io_uring_setup,
    Sysno::io_setup,
    Sysno::process_vm_readv,
    Sysno::process_vm_writev,
    Sysno::open_by_handle_at,
    Sysno::name_to_handle_at,
    Sysno::userfaultfd,
    Sysno::perf_event_open,
    Sysno::init_module,
    Sysno::finit_module,
    Sysno::delete_module,
    Sysno::kexec_load,
    Sysno::reboot,
    Sysno::swapon,
    Sysno::iopl,
    Sysno::ioperm,
    Sysno::acct,
    Sysno::quotactl,
    Sysno::personality,
    Sysno::sethostname,
    Sysno::syslog,
    Sysno::clock_settime,
    Sysno::rt_sigaction,
    Sysno::bind,
    Sysno::listen,
    Sysno::open,
    Sysno::openat2,
    Sysno::memfd_create,
    Sysno::shmget,
    Sysno::prlimit64,
    Sysno::inotify_init1,
    Sysno::fanotify_init,
];

/// Calls that a class may make with other arguments only.
const FORBIDDEN_ARGUMENTS: &[(Sysno, [libc::c_int; 4])] = &[
    (Sysno::clone, [libc::SIGCHLD, 0, 0, 0]),
    (Sysno::mmap, [0, 4096, libc::PROT_EXEC, libc::MAP_PRIVATE]),
    (Sysno::mprotect, [0, 4096, libc::PROT_EXEC, 0]),
    (Sysno::tgkill, [1, 1, 0, 0]),
    (Sysno::prctl, [libc::PR_SET_DUMPABLE, 1, 0, 0]),
    (Sysno::ioctl, [0, 0x5412, 0, 0]),
    (Sysno::fcntl, [0, libc::F_SETOWN, 1, 0]),
    (Sysno::socket, [libc::AF_NETLINK, libc::SOCK_RAW, 0, 0]),
    (Sysno::socket, [libc::AF_PACKET, libc::SOCK_RAW, 0, 0]),
    (Sysno::socket, [libc::AF_INET6, libc::SOCK_STREAM, 0, 0]),
    (Sysno::socket, [libc::AF_VSOCK, libc::SOCK_STREAM, 0, 0]),
];

/// Runs `body` in a process of its own with the filter of `class`, and returns its exit status and what it wrote to its log.
fn confined(class: ThreadClass, body: impl FnOnce()) -> (i32, String) {
    let (mut log, writer) = pipe().unwrap();
    let writer = OwnedFd::from(writer);
    // SAFETY: the child ends with `_exit`. The C library makes its allocator usable after `fork`.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: both descriptors are open.
            unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
            let armed = faults::arm().and_then(|()| seccomp::arm()).and_then(|()| seccomp::confine(class));
            if armed.map_err(JailError::at("confine the child")).is_ok() {
                body();
            }
            // SAFETY: `_exit` ends the child without running exit handlers.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, status) => (status, text),
        other => panic!("{other:?}: {text}"),
    }
}

fn call(number: Sysno, [a, b, c, d]: [libc::c_int; 4]) {
    // SAFETY: the arguments are no valid pointers, and the filter ends the process before the kernel reads them. A call that is not
    // refused ends the test with a failure.
    unsafe { libc::syscall(i64::from(number.id()), a, b, c, d, 0, 0) };
}

#[test]
fn a_forbidden_call_of_each_class_ends_the_process_and_is_named() {
    assert!(FORBIDDEN.len() + FORBIDDEN_ARGUMENTS.len() > 60);
    let calls = FORBIDDEN.iter().map(|number| (*number, [0; 4])).chain(FORBIDDEN_ARGUMENTS.iter().copied());
    for (number, arguments) in calls {
        for (class, name) in CLASSES {
            let (status, text) = confined(class, || call(number, arguments));
            assert_eq!(status, 128 + libc::SIGSYS, "{name}: {number}: {text}");
            let words = format!(" ERROR the jail ended the VMM: a thread of class {name} made system call ");
            assert!(text.contains(&words) && text.ends_with(&format!(" ({number})\n")), "{text}");
        }
    }
}

#[test]
fn only_the_file_server_opens_files() {
    for (class, name) in CLASSES {
        let (status, text) = confined(class, || call(Sysno::openat, [-1, 0, 0, 0]));
        let expected = if class == ThreadClass::FileServer { 0 } else { 128 + libc::SIGSYS };
        assert_eq!(status, expected, "{name}: {text}");
    }
}

#[test]
fn a_fault_ends_the_process_and_is_named() {
    let raise = |signal| {
        move || {
            // SAFETY: the signal's handler ends the process of its own that this runs in.
            unsafe { libc::raise(signal) };
        }
    };
    for (signal, name) in [(libc::SIGSEGV, "SIGSEGV"), (libc::SIGBUS, "SIGBUS"), (libc::SIGILL, "SIGILL")] {
        let (status, text) = confined(ThreadClass::Vcpu, raise(signal));
        assert_eq!(status, 128 + signal, "{text}");
        let words = format!(" ERROR the VMM crashed: a thread of class vCPU got signal {name}\n");
        assert!(text.ends_with(&words), "{text}");
    }
    // SAFETY: `abort` ends the process of its own that this runs in.
    let (status, text) = confined(ThreadClass::FileServer, || unsafe { libc::abort() });
    assert_eq!(status, 128 + libc::SIGABRT);
    assert!(text.ends_with("a thread of class file server got signal SIGABRT\n"), "{text}");
}

#[test]
fn the_abort_after_a_panic_adds_no_line() {
    let (status, text) = confined(ThreadClass::EventLoop, || {
        faults::panic_is_logged();
        // SAFETY: `abort` ends the process of its own that this runs in.
        unsafe { libc::abort() }
    });
    assert_eq!((status, text.as_str()), (128 + libc::SIGABRT, ""));
}
