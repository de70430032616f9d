//! Requests of clients and their answers.

use agent::ContainerRequest;

use super::*;

#[test]
fn requests_may_be_sent_before_the_guest_has_booted() {
    let mut sandbox = TestSandbox::new();
    let root = std::fs::File::open(sandbox.directory.path()).unwrap();
    let share = Request::AddShare { name: "main/rootfs".into(), options: ShareOptions::default() };
    let first = sandbox.client().send(&share, &[root.as_fd()]).unwrap();
    let (second, _output) = sandbox.create("main");
    let answer = sandbox.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (first, Ok(Reply::Done)));
    sandbox.send_hello();
    sandbox.answer_create();
    let answer = sandbox.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (second, Ok(Reply::Process { pid: 5 })));
    let Ok(Reply::Timeline(stages)) = sandbox.client().call(&Request::Timeline, &[], Some(LONG)) else { panic!() };
    assert!(!stages.is_empty(), "other tests share the process's timeline, so which stages it has room for is open");
}

#[test]
fn an_executed_process_is_reported_and_a_failed_one_fails_its_waiters() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    let exec = TestSandbox::exec(&mut client, "e");
    let wait = TestSandbox::wait(&mut client, Some("e"));
    sandbox.answer_create();
    sandbox.send_exit(Some("e"), ExitStatus::Exited(3));
    assert_eq!(client.receive(Some(LONG)).unwrap().id, exec);
    let answer = client.receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, exited(&answer)), (wait, ExitStatus::Exited(3)));
    // A program that cannot be executed.
    TestSandbox::exec(&mut client, "f");
    TestSandbox::wait(&mut client, Some("f"));
    let cause = Failure { kind: FailureKind::ProgramNotFound, step: "exec".into(), cause: "no such file".into() };
    sandbox.answer(Err(cause.clone()));
    assert_eq!(failed(client.receive(Some(LONG))), cause);
    assert_eq!(failed(client.receive(Some(LONG))), cause);
    TestSandbox::wait(&mut client, Some("f"));
    assert_eq!(failed(client.receive(Some(LONG))).kind, FailureKind::NotFound);
    assert!(sandbox.is_running());
}

#[test]
fn clients_that_violate_the_protocol_do_not_affect_others() {
    let (sandbox, _output) = TestSandbox::running();
    let mut sandbox = sandbox;
    let mut garbage = UnixStream::connect(sandbox.socket()).unwrap();
    std::io::Write::write_all(&mut garbage, &[0xff; 100]).unwrap();
    // One sends half a request, one never reads its answers, and one omits the descriptors.
    let mut half = UnixStream::connect(sandbox.socket()).unwrap();
    std::io::Write::write_all(&mut half, &[100, 0, 0, 0, b'{']).unwrap();
    let mut unread = sandbox.connect();
    for _ in 0..20_000 {
        if unread.send(&Request::Timeline, &[]).is_err() {
            break;
        }
    }
    let mut without_fds = sandbox.connect();
    without_fds.send(&Request::AddShare { name: "main/x".into(), options: ShareOptions::default() }, &[]).unwrap();
    assert!(matches!(without_fds.receive(Some(LONG)), Err(ClientError::Closed)));
    assert_eq!(sandbox.status(), Status::Running);
}

#[test]
fn invalid_requests_fail_with_the_cause() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    let fails = |client: &mut Client, request: &Request, fds: &[BorrowedFd]| match client.call(request, fds, Some(LONG))
    {
        Err(ClientError::Failure(failure)) => failure.to_string(),
        other => panic!("{other:?}"),
    };
    let unknown = Request::Container(ContainerRequest::Start { container: "other".into() });
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
    let signal = Request::Container(ContainerRequest::Signal { process: of_main(Some("e")), signal: 9, all: false });
    assert!(fails(&mut client, &signal, &[]).starts_with("find process e of container main: "));
    assert_eq!(sandbox.status(), Status::Running);
}

#[test]
fn a_signal_is_forwarded_to_the_main_process() {
    let (mut sandbox, _output) = TestSandbox::running();
    let thread = sandbox.thread.as_ref().unwrap().as_pthread_t();
    nix::sys::pthread::pthread_kill(thread, Signal::SIGTERM).unwrap();
    match sandbox.answer(Ok(Response::Done)) {
        agent::Request::Container(agent::ContainerRequest::Signal { process, signal: 15, all: false }) => {
            assert_eq!(process, of_main(None));
        }
        other => panic!("{other:?}"),
    }
    assert!(sandbox.is_running());
}

#[test]
fn a_signal_before_the_main_process_exists_ends_the_sandbox() {
    let sandbox = TestSandbox::new();
    let thread = sandbox.thread.as_ref().unwrap().as_pthread_t();
    nix::sys::pthread::pthread_kill(thread, Signal::SIGINT).unwrap();
    assert_eq!(sandbox.exit_status(), 130);
}
