//! Compiles the system call policies in `seccomp/` to BPF programs, which the VMM includes.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::path::Path;

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};

/// The policies, one file each.
const POLICIES: [&str; 5] = ["event-loop", "file-server", "host-sockets", "template-saver", "vcpu"];

/// Number of `clone3` on every architecture.
const CLONE3: u32 = 435;

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets the output directory");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target architecture");
    let arch = TargetArch::try_from(arch.as_str()).expect("a supported architecture");
    for name in POLICIES {
        let path = format!("seccomp/{name}.json");
        println!("cargo::rerun-if-changed={path}");
        let policy = File::open(&path).unwrap_or_else(|error| panic!("open {path}: {error}"));
        let mut programs: HashMap<String, BpfProgram> =
            compile_from_json(policy, arch).unwrap_or_else(|error| panic!("compile {path}: {error}"));
        let program = programs.remove("thread").unwrap_or_else(|| panic!("{path} has no policy \"thread\""));
        let bytes: Vec<u8> = without_clone3().into_iter().chain(program).flat_map(|one| bytes(&one)).collect();
        fs::write(Path::new(&out).join(format!("{name}.bpf")), bytes).expect("the output directory is writable");
    }
}

/// `clone3` fails as on a kernel that lacks it: its flags are in memory, where no filter can check them. The C library then uses
/// `clone`.
fn without_clone3() -> [sock_filter; 3] {
    let load_number = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
    let is_clone3 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, CLONE3);
    let not_implemented = (libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned());
    [load_number, is_clone3, not_implemented].map(|(code, jt, jf, k)| sock_filter {
        code: u16::try_from(code).expect("a BPF opcode"),
        jt,
        jf,
        k,
    })
}

/// The instruction as the kernel reads it (`struct sock_filter`).
fn bytes(instruction: &sock_filter) -> [u8; 8] {
    let sock_filter { code, jt, jf, k } = *instruction;
    let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
    [c0, c1, jt, jf, k0, k1, k2, k3]
}
