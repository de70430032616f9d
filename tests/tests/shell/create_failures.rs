//! A system call of `create` fails: the error names the step and the cause, and everything is undone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, is_vmrt, wait};

/// System calls by which `create` gets descriptors, memory, processes and space on disk, or changes the host, with errors that they fail
/// with when these are used up or forbidden, and the words for each error.
const FAULTS: [(&str, &str, &str); 24] = [
    ("openat", "EMFILE", "too many open files"),
    ("openat", "ENOSPC", "no space left"),
    ("socket", "EMFILE", "too many open files"),
    ("socketpair", "EMFILE", "too many open files"),
    ("connect", "EAGAIN", "temporarily unavailable"),
    ("pipe2", "EMFILE", "too many open files"),
    ("fcntl", "EMFILE", "too many open files"),
    ("pidfd_open", "EMFILE", "too many open files"),
    ("signalfd4", "EMFILE", "too many open files"),
    ("clone3", "EAGAIN", "temporarily unavailable"),
    ("clone3", "ENOMEM", "cannot allocate memory"),
    ("clone3", "ENOSPC", "no space left"),
    ("mkdir", "ENOSPC", "no space left"),
    ("write", "ENOSPC", "no space left"),
    ("rename", "ENOSPC", "no space left"),
    ("flock", "ENOLCK", "no locks available"),
    ("open_tree", "EPERM", "operation not permitted"),
    ("open_tree", "EMFILE", "too many open files"),
    ("mount_setattr", "EPERM", "operation not permitted"),
    ("move_mount", "ENOMEM", "cannot allocate memory"),
    ("setns", "EPERM", "operation not permitted"),
    ("sendmsg", "ENOMEM", "cannot allocate memory"),
    ("poll", "ENOMEM", "cannot allocate memory"),
    ("statx", "ENOMEM", "cannot allocate memory"),
];

/// How many occurrences of a system call fail, one a `create`, if it has more.
const SAMPLES: usize = 3;

/// Time for all of them. What does not fit is left out, but a quarter has to fit.
const MAX_DURATION: Duration = Duration::from_secs(75);

/// The result of a `create` under strace.
struct Created {
    code: i32,
    message: String,
}

/// Runs `create` under strace with these options of it. strace follows none of its children.
fn create(runtime: &Runtime, bundle: &Bundle, id: &str, strace: &[&str]) -> Created {
    let output = tempfile::NamedTempFile::new().unwrap();
    let file = File::options().append(true).open(output.path()).unwrap();
    let create = runtime.command(&["create", "--bundle", bundle.path().to_str().unwrap(), id]);
    let mut command = Command::new("strace");
    command.args(strace).arg(create.get_program()).args(create.get_args());
    // A container keeps its streams open, so they are a file.
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let code = wait(&mut command.spawn().unwrap());
    let message = fs::read_to_string(output.path()).unwrap().trim().to_owned();
    Created { code, message }
}

/// How often `create` makes each of the system calls.
fn occurrences(runtime: &Runtime, bundle: &Bundle) -> BTreeMap<String, usize> {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let done = create(runtime, bundle, "traced", &["-o", trace.path().to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.message);
    runtime.call(&["delete", "--force", "traced"]).ok();
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(trace.path()).unwrap().lines() {
        let name = line.split('(').next().unwrap_or_default();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// A number below `bound` from a fixed sequence, so that a failure can be reproduced.
fn random(state: &mut u64, bound: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state % bound as u64).unwrap()
}

/// The faults to inject: system call, error, words and occurrence.
fn faults(counts: &BTreeMap<String, usize>) -> Vec<(&'static str, &'static str, &'static str, usize)> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut all = Vec::new();
    for (call, error, words) in FAULTS {
        let count = counts.get(call).copied().unwrap_or_default();
        // The second call is the release of the lock, which does not fail in Linux.
        let count = if call == "flock" { count.min(1) } else { count };
        let mut chosen: Vec<usize> = (1..=count).collect();
        while chosen.len() > SAMPLES {
            chosen.remove(random(&mut state, chosen.len()));
        }
        all.extend(chosen.into_iter().map(|number| (call, error, words, number)));
    }
    // If time ends before all were tried, those that were are of all kinds.
    (0..all.len()).for_each(|index| all.swap(index, random(&mut state, index + 1)));
    all
}

#[test]
fn a_create_that_fails_at_any_step_is_undone() {
    if !is_vmrt() {
        return;
    }
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let faults = faults(&occurrences(&runtime, &bundle));
    runtime.assert_clean();
    let (begun, mut tried, mut failed) = (Instant::now(), 0, 0);
    for (call, error, words, number) in &faults {
        if begun.elapsed() > MAX_DURATION {
            break;
        }
        let inject = format!("inject={call}:error={error}:when={number}");
        let done = create(&runtime, &bundle, "failing", &["-o", "/dev/null", "-e", &inject]);
        println!("{inject}: {} {}", done.code, done.message);
        tried += 1;
        if done.code == 0 {
            runtime.call(&["delete", "--force", "failing"]).ok();
        } else {
            failed += 1;
            let message = done.message.to_lowercase();
            // pthread_create() reports a lack of memory as EAGAIN.
            let is_told = message.contains(words) || (*call == "clone3" && message.contains("temporarily unavailable"));
            assert!(is_told && message.contains(": "), "{inject}: {}", done.message);
        }
        runtime.assert_clean();
    }
    println!("{tried} of {} faults were injected, {failed} made create fail", faults.len());
    assert!(tried >= faults.len() / 4 && failed >= tried / 4, "{failed} of {tried}");
}
