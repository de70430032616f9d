//! `docker run` in the foreground.

use vmrt_tests::runtime::{RunningCommand, wait};
use vmrt_tests::terminal::Terminal;

use super::Docker;
use crate::Test;

pub const TESTS: &[Test] = &[
    ("streams_and_exit_status_are_the_containers", streams_and_exit_status_are_the_containers),
    ("a_terminal_is_connected_and_resized", a_terminal_is_connected_and_resized),
    ("a_program_that_cannot_be_executed_is_named", a_program_that_cannot_be_executed_is_named),
];

fn streams_and_exit_status_are_the_containers() {
    let docker = Docker::new();
    let script = "cat; echo to stderr >&2; uname -r >&2; exit 7";
    let mut command = docker.run_command(&["--rm", "--interactive"], &["sh", "-c", script]);
    let done = RunningCommand::start(&mut command, Some(b"typed\n".to_vec())).end();
    assert_eq!((done.code, done.text().as_str()), (7, "typed"));
    let message = done.message();
    let host = nix::sys::utsname::uname().expect("the host's name");
    assert!(message.starts_with("to stderr\n"), "{message}");
    assert!(!message.ends_with(host.release().to_str().expect("a text")), "it ran on the host's kernel: {message}");
}

fn a_terminal_is_connected_and_resized() {
    let docker = Docker::new();
    let mut terminal = Terminal::new(31, 91);
    let mut child = terminal.start(&docker.run_command(&["--rm", "-it"], &["sh"]));
    terminal.expect("# ");
    // Docker sets the size after the program has begun.
    terminal.type_in("until stty size | grep '31 91'; do sleep 0.1; done; echo si''zed; tty\n");
    terminal.expect("sized");
    terminal.expect("/dev/pts/");
    terminal.resize(42, 101);
    terminal.type_in("until stty size | grep '42 101'; do sleep 0.1; done; echo re''sized\n");
    terminal.expect("resized");
    terminal.type_in("exit 5\n");
    assert_eq!(wait(&mut child), 5);
}

fn a_program_that_cannot_be_executed_is_named() {
    let docker = Docker::new();
    for (program, code, reason) in [("/nothing", 127, "no such file or directory"), ("/etc", 126, "permission denied")]
    {
        let done = RunningCommand::start(&mut docker.run_command(&["--rm"], &[program]), None).end();
        assert_eq!(done.code, code, "{done:?}");
        assert!(done.message().contains(program) && done.message().contains(reason), "{done:?}");
    }
}
