//! Terminals: of a user in the foreground, and of an engine through a console socket.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use vmrt_tests::bundle::Bundle;
use vmrt_tests::runtime::{Runtime, new_id, wait};
use vmrt_tests::terminal::{Terminal, console_socket};

fn interactive(args: &[&str]) -> Bundle {
    Bundle::busybox(args.iter().copied()).with("/process/terminal", json!(true))
}

#[test]
fn an_interactive_shell_works_on_a_terminal() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh"]);
    let mut terminal = Terminal::new(41, 103);
    let modes = format!("{:?}", terminal.modes());
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = terminal.start(command.arg(bundle.path()).arg(new_id()));
    terminal.expect_prompt();
    terminal.type_in("tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all''three\n");
    terminal.expect("/dev/");
    terminal.expect_line("41 103");
    terminal.expect_line("allthree");
    terminal.expect_prompt();

    terminal.resize(20, 60);
    terminal.type_in("until stty size | grep '20 60'; do sleep 0.1; done\n");
    terminal.expect_line("20 60");
    terminal.expect_prompt();

    terminal.type_in("sh -c 'echo wai''ting; exec sleep 1000'; echo end=$?\n");
    terminal.expect_line("waiting");
    terminal.type_in("\x03");
    terminal.expect("^C");
    terminal.expect_prompt();
    terminal.type_in("echo after=$?\n");
    terminal.expect_line("after=130");
    terminal.expect_prompt();

    terminal.type_in("sh -c 'echo wai''ting; exec sleep 1000'\n");
    terminal.expect_line("waiting");
    terminal.type_in("\x1a");
    terminal.expect("Stopped");
    terminal.expect_prompt();
    terminal.type_in("kill %1; fg; exit 9\n");
    assert_eq!(wait(&mut child), 9);
    assert_eq!(format!("{:?}", terminal.modes()), modes, "the terminal is as it was before");
}

#[test]
fn terminal_output_is_complete_before_the_exit() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh", "-c", "seq 1 5000; echo last"]);
    let mut terminal = Terminal::new(24, 80);
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = terminal.start(command.arg(bundle.path()).arg(new_id()));
    for number in [1, 1000, 2500, 4999, 5000] {
        terminal.expect(&format!("{number}\r\n"));
    }
    terminal.expect("last\r\n");
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let runtime = Runtime::new();
    let bundle = Bundle::busybox(["sleep", "1000"]);
    let container = runtime.start_container(&bundle);
    let mut terminal = Terminal::new(30, 90);
    let modes = format!("{:?}", terminal.modes());
    let mut child = terminal.start(&runtime.command(&["exec", "--tty", &container.id, "sh"]));
    terminal.expect_prompt();
    terminal.type_in("stty size; cat\n");
    terminal.expect_line("30 90");
    terminal.type_in("echoed\n");
    terminal.expect_line("echoed\r\nechoed");
    terminal.type_in("\x04");
    terminal.expect_prompt();
    terminal.type_in("exit 6\n");
    assert_eq!(wait(&mut child), 6);
    assert_eq!(format!("{:?}", terminal.modes()), modes);
    assert_eq!(container.status(), "running");
}

#[test]
fn a_resize_is_reported_to_the_program() {
    let runtime = Runtime::new();
    let script = "trap 'echo now $(stty size)' WINCH; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done";
    let bundle = interactive(&["sh", "-c", script]);
    let mut terminal = Terminal::new(24, 80);
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = terminal.start(command.arg(bundle.path()).arg(new_id()));
    terminal.expect_line("ready");
    for (rows, columns) in [(25, 81), (50, 132)] {
        terminal.resize(rows, columns);
        terminal.expect_line(&format!("now {rows} {columns}"));
    }
    terminal.type_in("\x03");
    assert_eq!(wait(&mut child), 8);
}

#[test]
fn a_console_socket_receives_the_terminal() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh"]);
    let socket = bundle.path().join("console");
    let listener = console_socket(&socket);
    let id = new_id();
    let mut command = runtime.command(&["create", "--console-socket", socket.to_str().unwrap(), "--bundle"]);
    command.arg(bundle.path()).arg(&id).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut create = command.spawn().unwrap();
    let mut terminal = Terminal::receive(&listener);
    assert_eq!(wait(&mut create), 0);
    terminal.resize(50, 120);
    runtime.call(&["start", &id]).ok();
    terminal.expect_prompt();
    terminal.type_in("stty size\n");
    terminal.expect_line("50 120");
    terminal.expect_prompt();
    terminal.resize(51, 121);
    terminal.type_in("until stty size | grep '51 121'; do sleep 0.1; done\n");
    terminal.expect_line("51 121");
    terminal.expect_prompt();

    let mut command =
        runtime.command(&["exec", "--detach", "--tty", "--console-socket", socket.to_str().unwrap(), &id]);
    let mut exec = command.args(["sh", "-c", "tty; stty size; read line; echo \"<$line>\""]).spawn().unwrap();
    let mut second = Terminal::receive(&listener);
    assert_eq!(wait(&mut exec), 0);
    second.expect("/dev/pts/");
    second.expect("\r\n");
    second.type_in("typed\n");
    second.expect_line("<typed>");
    terminal.type_in("exit\n");
    terminal.rest(Duration::from_secs(2));
    runtime.call(&["delete", "--force", &id]).ok();
}

#[test]
fn a_new_terminal_has_the_configured_size() {
    let runtime = Runtime::new();
    let bundle = interactive(&["stty", "size"]).with("/process/consoleSize", json!({"height": 33, "width": 111}));
    let socket = bundle.path().join("console");
    let listener = console_socket(&socket);
    let id = new_id();
    let mut command = runtime.command(&["run", "--detach", "--console-socket", socket.to_str().unwrap(), "--bundle"]);
    command.arg(bundle.path()).arg(&id).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut run = command.spawn().unwrap();
    let mut terminal = Terminal::receive(&listener);
    assert_eq!(wait(&mut run), 0);
    terminal.expect("33 111\r\n");
    runtime.call(&["delete", "--force", &id]).ok();
}

#[test]
fn a_terminal_without_a_console_socket_is_refused_at_create() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh"]);
    let mut command = runtime.command(&["create", "--bundle"]);
    command.arg(bundle.path()).arg(new_id());
    let done = vmrt_tests::runtime::RunningCommand::start(&mut command, None).end();
    assert_ne!(done.code, 0);
    assert!(
        done.message().contains("console-socket") || done.message().contains("console socket"),
        "{}",
        done.message()
    );
}

#[test]
fn terminal_output_into_a_pipe_has_no_carriage_returns() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh", "-c", "test -t 1 && echo one && echo two"]);
    let mut terminal = Terminal::new(24, 80);
    let run = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &new_id()]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" | od -A n -c", "sh"]).arg(run.get_program()).args(run.get_args());
    let mut child = terminal.start(&shell);
    terminal.expect("o   n   e  \\n   t   w   o  \\n");
    assert_eq!(wait(&mut child), 0);
}

#[test]
fn a_read_only_dev_has_a_console() {
    let runtime = Runtime::new();
    let bundle = interactive(&["sh", "-c", "touch /dev/x || echo console=$(test -c /dev/console && echo there)"]);
    let bundle = bundle.with("/mounts/1/options/-", json!("ro"));
    let mut terminal = Terminal::new(24, 80);
    let mut command = runtime.command(&["run", "--bundle"]);
    let mut child = terminal.start(command.arg(bundle.path()).arg(new_id()));
    terminal.expect("Read-only file system");
    terminal.expect("console=there");
    assert_eq!(wait(&mut child), 0);
}
