//! The controller against a false agent, clients of every kind, and a machine that only ends.

mod clients;
mod clock;
mod endings;
mod events;
mod resizing;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use agent::{Event, ExitStatus, FromAgent, Hello, Response, Stdio, frame};
use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use vm_memory::GuestAddress;

use super::*;
use crate::control::{Answer, Client, ClientError, NewContainer, Reply, Request, ShareOptions, Status, StdioFds};
use crate::event_loop::{BoxedSubscriber, EventLoop};
use crate::machine::exit::{self, ExitSender, MachineExit};
use crate::machine::memory::map_pluggable;
use crate::machine::vcpus::VcpuSource;
use crate::mem::{self, Pluggable, Region};
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

/// What resizes a machine that boots with 64 MiB and may have 96.
fn pluggable() -> (Resizer, Pluggable) {
    let mapping = map_pluggable(GuestAddress(4 << 30), 32 << 20, mem::BLOCK_SIZE).unwrap();
    mem::pluggable(Region::new(mapping).unwrap(), 64 << 20, 1 << 40, Box::new(|| Ok(()))).unwrap()
}

/// A sandbox in an event loop of its own, and all that is around it.
struct Bench {
    client: Option<Client>,
    agent: UnixStream,
    ports: Ports,
    /// What the machine's memory device is made of.
    pluggable: Option<Pluggable>,
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
        let victim = victim_in(directory.path());
        let (client, theirs) = UnixStream::pair().unwrap();
        let (machine, exit) = exit::channel().unwrap();
        let (ports, stop) = (Ports::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let (sender, receiver) = mpsc::channel();
        let (resizer, pluggable) = pluggable();
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
                resizer,
                vcpus: VcpuSource::with(1, 3, Box::new(|_| Ok(()))),
                main_container: "main".into(),
                victim: Some(victim),
                follow_interfaces: Vec::new(),
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
        let pluggable = Some(pluggable);
        Self { client, agent, ports, pluggable, machine, outcome, directory, stop, thread: Some(thread) }
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

    /// The next call but for those that read the clock, which are answered with the right time.
    fn next_call(&mut self) -> agent::Call {
        loop {
            let call = self.any_call();
            let agent::Request::ReadClock = call.request else { return call };
            self.tell_time(call.id, 0);
        }
    }

    fn any_call(&mut self) -> agent::Call {
        frame::read(&mut self.agent).unwrap().unwrap()
    }

    /// Answers with the host's time, less what the guest's clock lacks.
    fn tell_time(&mut self, id: u64, missing_ns: i64) {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let guest_ns = i64::try_from(now).unwrap() - missing_ns;
        self.say(&FromAgent::Reply { id, result: Ok(Response::Clock { guest_ns }) });
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

/// A program in place of the one that is killed for want of memory: it takes its time and leaves its arguments in a file.
fn victim_in(directory: &Path) -> OsString {
    let program = directory.join("victim");
    std::fs::write(&program, format!("#!/bin/sh\nsleep 0.2\necho \"$@\" >{}\n", directory.join("died").display()))
        .unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program.into()
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
