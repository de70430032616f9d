//! The controller against a false agent, clients of every kind, and a machine that only ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use agent::{Event, ExitStatus, FromAgent, Hello, Response, Stdio, frame};
use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;

use super::*;
use crate::control::{Answer, Client, ClientError, NewContainer, Reply, Request, Status, StdioFds};
use crate::event_loop::{BoxedSubscriber, EventLoop};
use crate::machine::exit::{self, ExitSender, MachineExit};
use crate::vsock::Flow;

const LONG: Duration = Duration::from_secs(20);
const STREAMS: StdioFds = StdioFds::Streams { stdin: false, stdout: true, stderr: false };

fn create_request(container: &str) -> Request {
    Request::Create(Box::new(NewContainer {
        container: container.into(),
        spec: Spec::default(),
        bundle: "/bundle".into(),
        stdio: STREAMS,
        seccomp: None,
        interfaces: Vec::new(),
        special_files: Vec::new(),
        name_server: false,
    }))
}

/// A sandbox in an event loop of its own, and all that is around it.
struct Bench {
    client: Option<Client>,
    agent: UnixStream,
    ports: Ports,
    machine: ExitSender,
    outcome: Receiver<u8>,
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(&directory.path().join("control.sock")).unwrap();
        let (client, theirs) = UnixStream::pair().unwrap();
        let (machine, exit) = exit::channel().unwrap();
        let (ports, stop) = (Ports::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let (sender, receiver) = mpsc::channel();
        let (stopped, sandbox_ports) = (Arc::clone(&stop), ports.clone());
        let thread = std::thread::spawn(move || {
            let parts = Parts {
                client: Connection::new(theirs),
                listener,
                signals: Signals::block().unwrap(),
                machine: exit,
                ports: sandbox_ports,
                shares: SharesHandle::new(),
                slots: Slots::default(),
                main_container: "main".into(),
            };
            let (sandbox, outcome) = Sandbox::new(parts).unwrap();
            let mut event_loop = EventLoop::new().unwrap();
            event_manager::SubscriberOps::add_subscriber(&mut event_loop, Box::new(sandbox) as BoxedSubscriber);
            sender.send(outcome).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                event_loop.run_with_timeout(20).unwrap();
            }
        });
        let outcome = receiver.recv().unwrap();
        let agent: UnixStream = ports.take(agent::CONTROL_PORT).unwrap().bridge.sink.unwrap().into();
        agent.set_read_timeout(Some(LONG)).unwrap();
        let client = Some(Client::from_stream(client));
        Self { client, agent, ports, machine, outcome, directory, stop, thread: Some(thread) }
    }

    /// One whose agent has greeted and whose main container runs, with a pipe as its output.
    fn running() -> (Self, Output) {
        let mut bench = Self::new();
        bench.greet();
        let (id, output) = bench.create("main");
        bench.answer_make();
        assert_eq!(bench.client().receive(Some(LONG)).unwrap().id, id);
        let start = bench.client().send(&Request::Start { container: "main".into() }, &[]).unwrap();
        bench.answer(Ok(Response::Done));
        assert_eq!(bench.client().receive(Some(LONG)).unwrap().id, start);
        assert_eq!(bench.status(), Status::Running);
        (bench, output)
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().unwrap()
    }

    fn connect(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn say(&mut self, message: &FromAgent) {
        frame::write(&mut self.agent, message).unwrap();
    }

    fn greet(&mut self) {
        let hello = Hello { version: agent::VERSION, kernel: "6.12".into(), started_ns: 1, ready_ns: 2 };
        self.say(&FromAgent::Hello(hello));
    }

    fn next_call(&mut self) -> agent::Call {
        frame::read(&mut self.agent).unwrap().unwrap()
    }

    fn answer(&mut self, result: Result<Response, Failure>) -> agent::Request {
        let agent::Call { id, request } = self.next_call();
        self.say(&FromAgent::Reply { id, result });
        request
    }

    /// The port of the standard output of the process that is to be made.
    fn answer_make(&mut self) -> u32 {
        let stdio = match self.answer(Ok(Response::Process { pid: 5 })) {
            agent::Request::Create(create) => create.stdio,
            agent::Request::Exec(exec) => exec.stdio,
            other => panic!("{other:?}"),
        };
        let Stdio::Streams { stdout: Some(port), .. } = stdio else { panic!("{stdio:?}") };
        port
    }

    fn create(&mut self, container: &str) -> (u64, Output) {
        let (output, writer) = Output::new();
        let request = create_request(container);
        let id = self.client().send(&request, &[writer.as_fd()]).unwrap();
        (id, output)
    }

    fn exec(client: &mut Client, name: &str) -> u64 {
        let (_, writer) = Output::new();
        let spec = Box::new(oci_spec::runtime::Process::default());
        client
            .send(
                &Request::Exec { process: of_main(Some(name)), spec, stdio: STREAMS, cgroup: None },
                &[writer.as_fd()],
            )
            .unwrap()
    }

    fn wait(client: &mut Client, exec: Option<&str>) -> u64 {
        client.send(&Request::Wait { process: of_main(exec) }, &[]).unwrap()
    }

    fn ended(&mut self, exec: Option<&str>, status: ExitStatus) {
        let process = of_main(exec);
        self.say(&FromAgent::Event(Event::Exited { process, status }));
    }

    fn status(&mut self) -> Status {
        match self.connect().call(&Request::Status { container: "main".into() }, &[], Some(LONG)).unwrap() {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn exit_status(&self) -> u8 {
        self.outcome.recv_timeout(LONG).unwrap()
    }

    fn runs(&self) -> bool {
        self.outcome.recv_timeout(Duration::from_millis(50)).is_err()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        assert!(!panicked || std::thread::panicking(), "the event loop panicked");
    }
}

/// The reading end of a process's output.
struct Output(std::io::PipeReader);

impl Output {
    fn new() -> (Self, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        (Self(reader), writer)
    }

    fn ends(mut self) -> bool {
        std::io::Read::read(&mut self.0, &mut [0; 1]).unwrap() == 0
    }
}

/// A process of the main container.
fn of_main(exec: Option<&str>) -> ProcessId {
    ProcessId { container: "main".into(), exec: exec.map(Into::into) }
}

fn exited(answer: &Answer) -> ExitStatus {
    match answer.result {
        Ok(Reply::Exited(status)) => status,
        ref other => panic!("{other:?}"),
    }
}

fn failed(result: Result<Answer, ClientError>) -> Failure {
    result.unwrap().result.unwrap_err()
}

#[test]
fn the_end_of_the_main_process_is_the_end_of_the_sandbox() {
    for (status, code) in [(ExitStatus::Exited(7), 7), (ExitStatus::Signaled(15), 143)] {
        let (mut bench, output) = Bench::running();
        let mut other = bench.connect();
        let waits = [Bench::wait(&mut other, None), Bench::wait(&mut other, None)];
        bench.ended(None, status);
        for id in waits {
            let answer = other.receive(Some(LONG)).unwrap();
            assert_eq!((answer.id, exited(&answer)), (id, status));
        }
        assert_eq!(bench.exit_status(), code);
        assert!(output.ends(), "the guest never connected: the descriptor is given back");
    }
}

#[test]
fn output_is_handed_over_before_the_end_is_told() {
    let mut bench = Bench::new();
    bench.greet();
    let (_, _output) = bench.create("main");
    let port = bench.answer_make();
    bench.client().receive(Some(LONG)).unwrap();
    let flow: Arc<Flow> = bench.ports.take(port).unwrap().flow;
    flow.set_unwritten(100);
    let mut client = bench.client.take().unwrap();
    Bench::wait(&mut client, None);
    bench.ended(None, ExitStatus::Exited(0));
    assert!(matches!(client.receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    assert_eq!(bench.status(), Status::Stopped(ExitStatus::Exited(0)), "it is no secret that it ended");
    // Its guest may even be gone by now.
    bench.machine.tell(MachineExit::Reset);
    assert!(bench.runs());
    flow.set_unwritten(0);
    assert_eq!(exited(&client.receive(Some(LONG)).unwrap()), ExitStatus::Exited(0));
    assert_eq!(bench.exit_status(), 0);
}

#[test]
fn requests_may_be_sent_before_the_guest_has_booted() {
    let mut bench = Bench::new();
    let root = std::fs::File::open(bench.directory.path()).unwrap();
    let share = Request::AddShare { name: "main/rootfs".into(), read_only: false };
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
fn a_guest_that_dies_is_told_to_everybody_once() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    Bench::wait(&mut client, None);
    Bench::exec(&mut client, "e");
    bench.next_call();
    bench.machine.tell(MachineExit::Panic("Attempted to kill init!".into()));
    for _ in 0..2 {
        let failure = failed(client.receive(Some(LONG)));
        assert_eq!(failure.kind, FailureKind::GuestDied);
        assert_eq!(failure.to_string(), "run the guest: the guest's kernel panicked: Attempted to kill init!");
    }
    assert_eq!(bench.exit_status(), GUEST_DIED);
    Bench::wait(&mut client, None);
    assert_eq!(failed(client.receive(Some(LONG))).kind, FailureKind::GuestDied);
}

#[test]
fn a_false_agent_ends_its_own_sandbox() {
    for bytes in [&[0xff_u8; 64][..], &[2, 0, 0, 0, b'{', b'}'], b""] {
        let (mut bench, _output) = Bench::running();
        let mut client = bench.connect();
        Bench::wait(&mut client, None);
        match bytes {
            [] => bench.agent.shutdown(std::net::Shutdown::Both).unwrap(),
            garbage => std::io::Write::write_all(&mut bench.agent, garbage).unwrap(),
        }
        let failure = failed(client.receive(Some(LONG)));
        assert_eq!((failure.kind, failure.step.as_str()), (FailureKind::GuestDied, "talk to the guest"));
        assert_eq!(bench.exit_status(), GUEST_DIED);
    }
}

#[test]
fn events_about_nobody_change_nothing() {
    let (mut bench, _output) = Bench::running();
    for number in 0..10_000 {
        let process = ProcessId { container: format!("c{number}"), exec: None };
        bench.say(&FromAgent::Event(Event::Exited { process, status: ExitStatus::Exited(0) }));
    }
    bench.ended(Some("never"), ExitStatus::Exited(0));
    assert_eq!(bench.status(), Status::Running);
    assert!(bench.runs());
}

#[test]
fn the_sandbox_needs_its_first_client_until_the_container_is_made() {
    let mut bench = Bench::new();
    bench.client = None;
    assert_eq!(bench.exit_status(), GUEST_DIED);
    let (mut bench, _output) = Bench::running();
    bench.client = None;
    assert!(bench.runs());
    assert_eq!(bench.status(), Status::Running);
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
    careless.send(&Request::AddShare { name: "main/x".into(), read_only: true }, &[]).unwrap();
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

#[test]
fn a_deleted_container_is_forgotten() {
    let (mut bench, _output) = Bench::running();
    let (id, _second) = bench.create("second");
    bench.answer_make();
    assert_eq!(bench.client().receive(Some(LONG)).unwrap().id, id);
    let wait = Request::Wait { process: ProcessId { container: "second".into(), exec: None } };
    let mut client = bench.connect();
    client.send(&wait, &[]).unwrap();
    let delete = bench.client().send(&Request::Delete { container: "second".into() }, &[]).unwrap();
    bench.answer(Ok(Response::Done));
    assert_eq!(bench.client().receive(Some(LONG)).unwrap().id, delete);
    assert_eq!(failed(client.receive(Some(LONG))).cause, "the container was deleted");
    assert!(bench.runs());
}

#[test]
fn what_was_executed_in_the_main_container_ends_with_it_and_is_told() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    Bench::exec(&mut client, "e");
    let wait = Bench::wait(&mut client, Some("e"));
    bench.answer_make();
    client.receive(Some(LONG)).unwrap();
    bench.ended(None, ExitStatus::Exited(0));
    assert!(bench.runs(), "the end of the executed process has not come yet");
    bench.ended(Some("e"), ExitStatus::Signaled(9));
    let answer = client.receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, exited(&answer)), (wait, ExitStatus::Signaled(9)));
    assert_eq!(bench.exit_status(), 0);
}

#[test]
fn a_paused_container_is_told_until_it_goes_on() {
    let (mut bench, _output) = Bench::running();
    for (frozen, status) in [(true, Status::Paused), (false, Status::Running)] {
        let request = Request::Freeze { container: "main".into(), frozen };
        let id = bench.client().send(&request, &[]).unwrap();
        match bench.answer(Ok(Response::Done)) {
            agent::Request::Freeze { container, frozen: asked } => {
                assert_eq!((container.as_str(), asked), ("main", frozen));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.client().receive(Some(LONG)).unwrap().id, id);
        assert_eq!(bench.status(), status);
    }
}

#[test]
fn memory_that_runs_out_is_told_each_time_and_before_the_end() {
    let (mut bench, _output) = Bench::running();
    let mut client = bench.connect();
    let ask = |client: &mut Client, known| {
        client.send(&Request::AwaitOutOfMemory { container: "main".into(), known }, &[]).unwrap()
    };
    ask(&mut client, None);
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(0)));
    ask(&mut client, Some(0));
    bench.say(&FromAgent::Event(Event::OutOfMemory { container: "nobody".into() }));
    bench.say(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(1)));
    ask(&mut client, Some(1));
    Bench::wait(&mut client, None);
    bench.say(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    bench.ended(None, ExitStatus::Signaled(9));
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(2)));
    assert_eq!(exited(&client.receive(Some(LONG)).unwrap()), ExitStatus::Signaled(9));
    let unknown = Request::AwaitOutOfMemory { container: "nobody".into(), known: None };
    let failed = client.call(&unknown, &[], Some(LONG));
    assert!(!matches!(failed, Ok(Reply::OutOfMemory(_))), "{failed:?}");
}

#[test]
fn what_the_guest_tells_of_a_container_is_handed_on() {
    let (mut bench, _output) = Bench::running();
    let statistics = std::collections::BTreeMap::from([("pids.current".to_owned(), "3\n".to_owned())]);
    let id = bench.client().send(&Request::Statistics { container: "main".into() }, &[]).unwrap();
    bench.answer(Ok(Response::Statistics(statistics.clone())));
    let answer = bench.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (id, Ok(Reply::Statistics(statistics))));
}
