//! System call filters.

use serde_json::{Value, json};
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt};

/// Python functions that make system calls and return their results: `call` by x86-64 numbers, `old` by x86 numbers.
const CALLS: &str = r#"
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(arg) for arg in args])
    return -ctypes.get_errno() if result == -1 else result
def old(number, first=0):
    code = b'\x53\xb8' + number.to_bytes(4, 'little') + b'\xbb' + first.to_bytes(4, 'little') + b'\xcd\x80\x5b\xc3'
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()
def ended(number, *args):
    child = os.fork()
    if child == 0:
        call(number, *args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"#;

fn python(script: &str, profile: Value) -> Bundle {
    Bundle::debian(["python3", "-c", &format!("{CALLS}\n{script}")]).with("/linux/seccomp", profile)
}

fn rule(names: &[&str], action: &str, more: Value) -> Value {
    let mut rule = json!({"names": names, "action": format!("SCMP_ACT_{action}")});
    if let Value::Object(more) = more {
        rule.as_object_mut().unwrap().extend(more);
    }
    rule
}

fn when(index: u8, operator: &str, value: u64) -> Value {
    json!({"index": index, "value": value, "op": format!("SCMP_CMP_{operator}")})
}

#[test]
fn every_action_and_operator_works() {
    let runtime = Runtime::new();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            rule(&["getppid", "no_such_call"], "ERRNO", json!({"errnoRet": 7})),
            rule(&["sync"], "ERRNO", json!({})),
            rule(&["vhangup"], "TRACE", json!({"errnoRet": 5})),
            rule(&["acct"], "KILL_PROCESS", json!({})),
            rule(&["swapoff"], "TRAP", json!({})),
            rule(&["getpgrp"], "LOG", json!({})),
            rule(&["getsid"], "ERRNO", json!({"errnoRet": 8, "args": [when(0, "GT", 0x1_0000_0000)]})),
            rule(&["getpgid"], "ERRNO", json!({"errnoRet": 9, "args": [when(0, "EQ", 5), when(1, "LE", 6)]})),
            rule(&["setfsuid"], "ERRNO", json!({"errnoRet": 10, "args": [when(0, "EQ", 5), when(0, "EQ", 6)]})),
            rule(&["setfsgid"], "ERRNO", json!({"errnoRet": 11, "args": [
                {"index": 0, "value": 0xf0, "valueTwo": 0x50, "op": "SCMP_CMP_MASKED_EQ"}]})),
        ],
    });
    let script = "
print(f'errno={call(110)}')
print(f'default={call(162)}')
print(f'trace={call(153)}')
print(f'killed={ended(163, 0)}')
print(f'trapped={ended(168, 0)}')
print(f'logged={call(111) >= 0}')
print(f'greater={call(124, 0x1_0000_0001)} {call(124, 0) >= 0}')
print(f'both={call(121, 5, 6)} {call(121, 5, 7)} {call(121, 0, 6) >= 0}')
print(f'either={call(122, 5)} {call(122, 6)} {call(122, 7) >= 0}')
print(f'masked={call(123, 0x5f)} {call(123, 0x6f) >= 0}')
print(f'x86={old(64)} {old(20) == os.getpid()}')";
    let done = runtime.run(&python(script, profile)).ok();
    done.assert_values(&[
        ("errno", "-7"),
        ("default", "-1"),
        ("trace", "-38"),
        ("killed", "-31"),
        ("trapped", "-31"),
        ("logged", "True"),
        ("greater", "-8 True"),
        ("both", "-9 -3 True"),
        ("either", "-10 -10 True"),
        ("masked", "-11 True"),
        ("x86", "-7 True"),
    ]);
}

/// A profile as engines write it: it allows most calls by name, and some by their arguments.
fn engine_profile() -> Value {
    let allowed = include_str!("seccomp-allowed").split_whitespace().collect::<Vec<_>>();
    let clone_flags = json!({"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"});
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            rule(&allowed, "ALLOW", json!({})),
            rule(&["socket"], "ALLOW", json!({"args": [when(0, "NE", 40)]})),
            rule(&["personality"], "ALLOW", json!({"args": [when(0, "EQ", 0)]})),
            rule(&["personality"], "ALLOW", json!({"args": [when(0, "EQ", 0xffff_ffff)]})),
            rule(&["clone"], "ALLOW", json!({"args": [clone_flags]})),
            rule(&["clone3"], "ERRNO", json!({"errnoRet": 38})),
        ],
    })
}

#[test]
fn an_engines_profile_works_with_and_without_new_privileges() {
    let runtime = Runtime::new();
    let script = "
import socket, threading
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(f'mode={status[\"Seccomp\"].strip()} {status[\"Seccomp_filters\"].strip()}')
thread = threading.Thread(target=lambda: print('thread=yes'))
thread.start(); thread.join()
print(f'child={os.system(\"true\")}')
print(f'unix={call(41, 1, 1, 0) >= 0}')
print(f'vsock={call(41, 40, 1, 0)}')
print(f'mount={call(165, 0, 0, 0, 0, 0)}')
print(f'unshare={call(272, 0x10000000)}')
print(f'clone3={call(435, 0, 0)}')
print(f'persona={call(135, 0xffffffff)} {call(135, 8)}')
print(f'future={call(2000)}')
print(f'x86={old(20) == os.getpid()} {old(52)}')
print(f'user={os.getuid()}')";
    for (no_new_privileges, user) in [(true, 0), (false, 0), (false, 1000)] {
        let bundle = python(script, engine_profile())
            .with("/process/noNewPrivileges", json!(no_new_privileges))
            .with("/process/user", json!({"uid": user, "gid": user}));
        let done = runtime.run(&bundle).ok();
        done.assert_values(&[
            ("mode", "2 1"),
            ("thread", "yes"),
            ("child", "0"),
            ("unix", "True"),
            ("vsock", "-1"),
            ("mount", "-1"),
            ("unshare", "-1"),
            ("clone3", "-38"),
            ("persona", "0 -1"),
            ("future", "-38"),
            ("x86", "True -1"),
            ("user", &user.to_string()),
        ]);
    }
}

#[test]
fn an_exec_is_filtered_too() {
    let runtime = Runtime::new();
    let rules = [rule(&["mkdir"], "ERRNO", json!({"errnoRet": 28}))];
    let bundle = Bundle::busybox(["sleep", "1000"])
        .with("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    let container = runtime.start_container(&bundle);
    let done = container.script("mkdir /x 2>&1; grep Seccomp: /proc/self/status");
    assert!(done.text().contains("No space left on device"), "{}", done.text());
    assert!(done.text().ends_with("Seccomp:\t2"), "{}", done.text());
}

#[test]
fn filter_flags_are_accepted() {
    if !is_vmrt() {
        // runc 1.1 does not support flags.
        return;
    }
    let runtime = Runtime::new();
    let flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
    let bundle = Bundle::busybox(["grep", "Seccomp:", "/proc/self/status"]).with(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
            "syscalls": [rule(&["acct"], "ERRNO", json!({}))]}),
    );
    assert_eq!(runtime.run(&bundle).ok().text(), "Seccomp:\t2");
}

#[test]
fn a_listener_is_refused_by_name() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let notify = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener",
        "syscalls": [rule(&["mkdir"], "NOTIFY", json!({}))]});
    let done = runtime.run(&Bundle::busybox(["true"]).with("/linux/seccomp", notify));
    assert_eq!(done.code, 1);
    assert!(done.message().contains("SCMP_ACT_NOTIFY is refused"), "{}", done.message());
}
