//! The standard streams: every byte arrives in order, and before the exit is reported.

use std::io::{Read, pipe};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{RunningCommand, Runtime, new_id, wait};

const TEN_MB: usize = 10_000_000;

/// Bytes of every value, without a period that divides a power of two.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn ten_megabytes_pass_both_ways_unchanged() {
    let runtime = Runtime::new();
    let input = noise(TEN_MB);
    let done = runtime.run_with_input(&Bundle::busybox(["cat"]), input.clone()).ok();
    assert!(done.stdout == input, "{} of {} bytes came back, or other ones", done.stdout.len(), input.len());
    assert!(done.stderr.is_empty(), "{}", done.message());
}

#[test]
fn standard_error_is_a_separate_stream() {
    let runtime = Runtime::new();
    let input = noise(1_000_000);
    let done = runtime.run_with_input(&Bundle::script("echo out; cat >&2; echo end; exit 7"), input.clone());
    assert_eq!((done.code, done.text()), (7, "out\nend".to_string()));
    assert!(done.stderr == input, "{} of {} bytes came", done.stderr.len(), input.len());
}

#[test]
fn the_end_of_input_is_forwarded_and_unread_input_does_not_block() {
    let runtime = Runtime::new();
    assert_eq!(runtime.run_with_input(&Bundle::busybox(["wc", "-c"]), Vec::new()).ok().text(), "0");
    let (reader, writer) = pipe().unwrap();
    let bundle = Bundle::busybox(["echo", "done"]);
    let mut command = runtime.command(&["run", "--bundle"]);
    command.arg(bundle.path()).arg(new_id()).stdin(reader).stdout(Stdio::null());
    assert_eq!(wait(&mut command.spawn().unwrap()), 0, "the other end of its input stays open");
    drop(writer);
    let done = runtime.run_with_input(&Bundle::busybox(["head", "-c", "3"]), noise(1_000_000)).ok();
    assert_eq!(done.stdout, noise(3));
}

#[test]
fn a_slow_reader_gets_all_output_before_the_exit() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("head -c 3000000 /dev/zero | tr '\\0' x; printf tail; exit 4");
    let (mut reader, writer) = pipe().unwrap();
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = command.arg(bundle.path()).arg(new_id()).stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    drop(command);
    thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "the command exited before its output was read");
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!((output.len(), &output[output.len() - 5..]), (3_000_004, &b"xtail"[..]));
    assert_eq!(wait(&mut child), 4);
}

#[test]
fn a_closed_output_pipe_ends_the_writer() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("yes; echo $? >/status");
    let (mut reader, writer) = pipe().unwrap();
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = command.arg(bundle.path()).arg(new_id()).stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    drop(command);
    reader.read_exact(&mut [0; 1000]).unwrap();
    drop(reader);
    wait(&mut child);
    let status = std::fs::read_to_string(bundle.file("status")).unwrap();
    assert!(["141\n", "1\n"].contains(&status.as_str()), "SIGPIPE or EPIPE, not {status}");
}

#[test]
fn output_is_complete_before_the_exit() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    for count in [1, 4096, 65_537, 300_000] {
        for _ in 0..5 {
            let done = container.script(&format!("head -c {count} /dev/zero; exit 9"));
            assert_eq!((done.code, done.stdout.len()), (9, count));
        }
    }
}

#[test]
fn files_can_be_the_standard_streams() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("cat; echo error >&2");
    let [input, output, errors] = ["input", "output", "errors"].map(|name| bundle.path().join(name));
    std::fs::write(&input, noise(100_000)).unwrap();
    std::fs::write(&output, "before").unwrap();
    let mut command = runtime.command(&["run", "--bundle"]);
    command.arg(bundle.path()).arg(new_id()).stdin(std::fs::File::open(&input).unwrap());
    command.stdout(std::fs::File::options().append(true).open(&output).unwrap());
    command.stderr(std::fs::File::create(&errors).unwrap());
    assert_eq!(wait(&mut command.spawn().unwrap()), 0);
    assert_eq!(std::fs::read(&output).unwrap(), [b"before", &noise(100_000)[..]].concat());
    assert_eq!(std::fs::read(&errors).unwrap(), b"error\n");
}

#[test]
fn a_container_runs_with_closed_standard_streams() {
    let runtime = Runtime::new();
    let bundle = Bundle::script("echo lost; echo kept >/kept");
    let command = runtime.command(&["run", "--bundle"]);
    let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
    let line = format!(
        "exec {} {} {} {} <&- >&- 2>&-",
        command.get_program().to_str().unwrap(),
        words.join(" "),
        bundle.path().display(),
        new_id()
    );
    let mut shell = std::process::Command::new("sh");
    let done = RunningCommand::start(shell.args(["-c", &line]), None).end();
    assert_eq!((done.stdout.len(), done.stderr.len()), (0, 0));
    assert_eq!(std::fs::read_to_string(bundle.file("kept")).unwrap(), "kept\n");
}
