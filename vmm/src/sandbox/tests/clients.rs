//! What clients ask for, in every order, and what they get.

use super::*;

#[test]
fn requests_may_be_sent_before_the_guest_has_booted() {
    let mut bench = Bench::new();
    let root = std::fs::File::open(bench.directory.path()).unwrap();
    let share = Request::AddShare { name: "main/rootfs".into(), options: ShareOptions::default() };
    let first = bench.client().send(&share, &[root.as_fd()]).unwrap();
    let (second, _output) = bench.create("main");
    let answer = bench.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (first, Ok(Reply::Done)));
    bench.greet();
    bench.answer_make();
    let answer = bench.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (second, Ok(Reply::Process { pid: 5 })));
    let Ok(Reply::Timeline(stages)) = bench.client().call(&Request::Timeline, &[], Some(LONG)) else { panic!() };
    assert!(!stages.is_empty(), "other tests share the process's timeline, so which stages it has room for is open");
}

#[test]
fn executed_processes_come_and_go() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    let exec = Bench::exec(&mut client, "e");
    let wait = Bench::wait(&mut client, Some("e"));
    bench.answer_make();
    bench.ended(Some("e"), ExitStatus::Exited(3));
    assert_eq!(client.receive(Some(LONG)).unwrap().id, exec);
    let answer = client.receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, exited(&answer)), (wait, ExitStatus::Exited(3)));
    // One that cannot be executed.
    Bench::exec(&mut client, "f");
    Bench::wait(&mut client, Some("f"));
    let cause = Failure { kind: FailureKind::ProgramNotFound, step: "exec".into(), cause: "no such file".into() };
    bench.answer(Err(cause.clone()));
    assert_eq!(failed(client.receive(Some(LONG))), cause);
    assert_eq!(failed(client.receive(Some(LONG))), cause);
    Bench::wait(&mut client, Some("f"));
    assert_eq!(failed(client.receive(Some(LONG))).kind, FailureKind::NotFound);
    assert!(bench.runs());
}

#[test]
fn clients_that_misbehave_harm_nobody_else() {
    let (bench, _output) = Bench::running();
    let mut bench = bench;
    let mut garbage = UnixStream::connect(bench.socket()).unwrap();
    std::io::Write::write_all(&mut garbage, &[0xff; 100]).unwrap();
    // One sends half a request, one asks and never reads, one forgets the descriptors.
    let mut half = UnixStream::connect(bench.socket()).unwrap();
    std::io::Write::write_all(&mut half, &[100, 0, 0, 0, b'{']).unwrap();
    let mut deaf = bench.connect();
    for _ in 0..20_000 {
        if deaf.send(&Request::Timeline, &[]).is_err() {
            break;
        }
    }
    let mut careless = bench.connect();
    careless.send(&Request::AddShare { name: "main/x".into(), options: ShareOptions::default() }, &[]).unwrap();
    assert!(matches!(careless.receive(Some(LONG)), Err(ClientError::Closed)));
    assert_eq!(bench.status(), Status::Running);
}

#[test]
fn requests_that_make_no_sense_fail_and_name_why() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    let fails = |client: &mut Client, request: &Request, fds: &[BorrowedFd]| match client.call(request, fds, Some(LONG))
    {
        Err(ClientError::Failure(failure)) => failure.to_string(),
        other => panic!("{other:?}"),
    };
    let unknown = Request::Start { container: "other".into() };
    let text = fails(&mut client, &unknown, &[]);
    assert_eq!(text, "find container other: there is none of that name in this sandbox");
    let (_, writer) = Output::new();
    let again = create_request("main");
    assert_eq!(fails(&mut client, &again, &[writer.as_fd()]), "create container main: the id is in use");
    let spec = Box::new(oci_spec::runtime::Process::default());
    let anonymous = Request::Exec { process: of_main(None), spec, stdio: STREAMS, cgroup: None };
    let text = fails(&mut client, &anonymous, &[writer.as_fd()]);
    assert_eq!(text, "execute a process in container main: the process has no id");
    let share = Request::RemoveShare { name: "main/none".into() };
    assert!(fails(&mut client, &share, &[]).starts_with("take the share away: "));
    let signal = Request::Signal { process: of_main(Some("e")), signal: 9, all: false };
    assert!(fails(&mut client, &signal, &[]).starts_with("find process e of container main: "));
    assert_eq!(bench.status(), Status::Running);
}

#[test]
fn a_signal_goes_to_the_main_process() {
    let (mut bench, _output) = Bench::running();
    let thread = bench.thread.as_ref().unwrap().as_pthread_t();
    nix::sys::pthread::pthread_kill(thread, Signal::SIGTERM).unwrap();
    match bench.answer(Ok(Response::Done)) {
        agent::Request::Signal { process, signal: 15, all: false } => assert_eq!(process, of_main(None)),
        other => panic!("{other:?}"),
    }
    assert!(bench.runs());
}

#[test]
fn a_signal_before_there_is_a_process_ends_the_sandbox() {
    let bench = Bench::new();
    let thread = bench.thread.as_ref().unwrap().as_pthread_t();
    nix::sys::pthread::pthread_kill(thread, Signal::SIGINT).unwrap();
    assert_eq!(bench.exit_status(), 130);
}
