use std::path::PathBuf;

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Command, ErrorKind> {
    let parsed = Arguments::try_parse_from(line.split(' '));
    parsed.map(|arguments| arguments.command).map_err(|error| error.kind())
}

#[test]
fn the_definition_of_the_command_line_is_valid() {
    Arguments::command().debug_assert();
}

#[test]
fn arguments_after_the_id_belong_to_the_program() {
    let Ok(Command::Exec(exec)) = parse("vmrt exec -t --user 1:2 web ls -l --tty") else { panic!("not parsed") };
    assert!(exec.tty);
    assert_eq!(exec.command, ["ls", "-l", "--tty"]);
    assert_eq!(exec.user.as_deref(), Some("1:2"));
}

#[test]
fn command_lines_of_engines_are_parsed() {
    let docker = "vmrt --root /r --log /l --log-format json create --bundle /b --pid-file /p --console-socket /s id";
    assert!(matches!(parse(docker), Ok(Command::Create(_))));
    assert!(matches!(parse("vmrt --log-format=json delete --force id"), Ok(Command::Delete(_))));
    assert!(matches!(parse("vmrt kill --all id 9"), Ok(Command::Kill(_))));
    assert!(matches!(parse("vmrt run "), Ok(Command::Run(_))), "an empty id is for the command to refuse");
    assert!(matches!(parse("vmrt run --no-pivot --no-new-keyring -d -b /b id"), Ok(Command::Run(_))));
}

#[test]
fn the_last_occurrence_of_an_option_counts() {
    let line = "vmrt --root /a --root /b exec -t -t -u 1 -u 2 -e A=1 -e B=2 web id";
    let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
    assert_eq!(arguments.global.root, Some(PathBuf::from("/b")));
    let Command::Exec(exec) = arguments.command else { panic!("not parsed") };
    assert_eq!((exec.tty, exec.user.as_deref()), (true, Some("2")));
    assert_eq!(exec.env, ["A=1", "B=2"]);
}

#[test]
fn an_empty_log_or_console_socket_is_accepted() {
    for line in [&["--log", "", "list"][..], &["create", "--console-socket", "", "web"]] {
        Arguments::try_parse_from(["vmrt"].iter().chain(line)).unwrap();
    }
}

#[test]
fn a_hidden_command_is_not_suggested() {
    let message = |line: &str| {
        let mut error = Arguments::try_parse_from(line.split(' ')).unwrap_err();
        remove_hidden_suggestions(&mut error);
        error.to_string()
    };
    for similar in ["vmrt updat", "vmrt update-interface", "vmrt date-interfaces"] {
        assert!(!message(similar).contains("update-interfaces"), "{}", message(similar));
    }
    assert!(message("vmrt star").contains("'start'"), "{}", message("vmrt star"));
}

#[test]
fn invalid_command_lines_are_refused() {
    assert_eq!(parse("vmrt frobnicate").unwrap_err(), ErrorKind::InvalidSubcommand);
    assert_eq!(parse("vmrt start").unwrap_err(), ErrorKind::MissingRequiredArgument);
    assert_eq!(parse("vmrt state a b").unwrap_err(), ErrorKind::UnknownArgument);
    assert_eq!(parse("vmrt run --frobnicate x").unwrap_err(), ErrorKind::UnknownArgument);
    assert_eq!(parse("vmrt list -f yaml").unwrap_err(), ErrorKind::InvalidValue);
}
