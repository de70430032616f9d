//! Tests of the controller with a simulated agent and machine, and real clients.

mod clients;
mod clock;
mod ending;
mod events;
mod resize;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::{
    ContainerConfig, ContainerRequest, Event, ExitStatus, Failure, FailureKind, FromAgent, Hello, ProcessId, Response,
    Stdio, frame,
};
use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use vm_memory::GuestAddress;

use super::{Connector, Controller, GUEST_DIED, Parts, Signals, TemplateRole, failures};
use crate::control::{
    Answer, Client, ClientError, Connection, NewContainer, Reply, Request, ShareOptions, Status, StdioFds,
};
use crate::event_loop::{BoxedSubscriber, EventLoop};
use crate::fs::{ProcFds, SharesHandle};
use crate::helper;
use crate::machine::exit::{self, ExitSender, MachineExit};
use crate::machine::memory::map_pluggable;
use crate::machine::vcpu::VcpuSource;
use crate::mem::{self, Pluggable, Region, Resizer};
use crate::net::Slots;
use crate::vsock::{Flow, Ports};

const LONG: Duration = Duration::from_secs(20);
const STREAMS: StdioFds = StdioFds::Streams { stdin: false, stdout: true, stderr: false };

fn create_request(container: &str) -> Request {
    Request::Create(Box::new(NewContainer {
        config: ContainerConfig {
            id: container.into(),
            spec: Spec::default(),
            bundle: "/bundle".into(),
            seccomp: None,
        },
        stdio: STREAMS,
        interfaces: Vec::new(),
        special_files: Vec::new(),
        name_server: false,
    }))
}

fn hello() -> Hello {
    Hello { version: agent::VERSION, kernel: "6.12".into(), started_ns: 1, ready_ns: 2 }
}

/// The memory control of a machine that boots with 64 MiB and may have 96 MiB.
fn pluggable() -> (Resizer, Pluggable) {
    let mapping = map_pluggable(GuestAddress(4 << 30), 32 << 20, mem::BLOCK_SIZE).unwrap();
    mem::pluggable(Region::new(mapping).unwrap(), 64 << 20, 1 << 40, Box::new(|_, _| Ok(()))).unwrap()
}

/// A sandbox whose event loop runs on its own thread, and the other ends of its connections.
struct TestSandbox {
    client: Option<Client>,
    agent: UnixStream,
    ports: Ports,
    /// The memory device's part of the memory control.
    pluggable: Option<Pluggable>,
    machine: ExitSender,
    exit_status: Receiver<u8>,
    directory: tempfile::TempDir,
    /// The other end of the connection to the helper.
    helper: OwnedFd,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TestSandbox {
    fn new() -> Self {
        Self::with(TemplateRole::None)
    }

    fn with(template: TemplateRole) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (helper, vmm_helper) = helper::connection().unwrap();
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
                has_cgroup: true,
                helper: vmm_helper,
                connector: Connector::start(ProcFds::open().unwrap()).unwrap(),
                template,
                interface_changes: None,
            };
            let (controller, exit_status) = Controller::new(parts).unwrap();
            let mut event_loop = EventLoop::new().unwrap();
            event_manager::SubscriberOps::add_subscriber(&mut event_loop, Box::new(controller) as BoxedSubscriber);
            sender.send(exit_status).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                event_loop.run_with_timeout(20).unwrap();
            }
        });
        let exit_status = receiver.recv().unwrap();
        let agent: UnixStream = ports.take(agent::CONTROL_PORT).unwrap().bridge.sink.unwrap().into();
        agent.set_read_timeout(Some(LONG)).unwrap();
        let client = Some(Client::from_stream(client));
        let pluggable = Some(pluggable);
        let thread = Some(thread);
        Self { client, agent, ports, pluggable, machine, exit_status, helper, directory, stop, thread }
    }

    /// A sandbox whose agent has sent `Hello` and whose main container runs with a pipe as its standard output.
    fn running() -> (Self, Output) {
        let mut sandbox = Self::new();
        sandbox.send_hello();
        let output = sandbox.create_main();
        let start = sandbox.start_main();
        sandbox.answer(Ok(Response::Done));
        assert_eq!(sandbox.client().receive(Some(LONG)).unwrap().id, start);
        assert_eq!(sandbox.status(), Status::Running);
        (sandbox, output)
    }

    /// Has the main container created, with a pipe as its standard output.
    fn create_main(&mut self) -> Output {
        let (id, output) = self.create("main");
        self.answer_create();
        assert_eq!(self.client().receive(Some(LONG)).unwrap().id, id);
        output
    }

    fn start_main(&mut self) -> u64 {
        let request = Request::Container(ContainerRequest::Start { container: "main".into() });
        self.client().send(&request, &[]).unwrap()
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

    fn send(&mut self, message: &FromAgent) {
        frame::write(&mut self.agent, message).unwrap();
    }

    /// Sends `Hello`, and answers the first call, which is the secret of the streams.
    fn send_hello(&mut self) {
        self.send(&FromAgent::Hello(hello()));
        self.answer_secret();
    }

    fn answer_secret(&mut self) {
        let agent::Call { id, request: agent::Request::SetStreamSecret { secret } } = self.next_call_of_any_kind()
        else {
            panic!("another call came first")
        };
        assert!(secret.matches(self.ports.secret().bytes()));
        self.send(&FromAgent::Reply { id, result: Ok(Response::Done) });
    }

    /// The next call to the agent. Calls that read the clock are answered with the right time and skipped.
    fn next_call(&mut self) -> agent::Call {
        loop {
            let call = self.next_call_of_any_kind();
            let agent::Request::ReadClock = call.request else { return call };
            self.answer_clock(call.id, 0);
        }
    }

    fn next_call_of_any_kind(&mut self) -> agent::Call {
        frame::read(&mut self.agent).unwrap().unwrap()
    }

    /// Answers a call that reads the clock with the host's time minus `offset_ns`.
    fn answer_clock(&mut self, id: u64, offset_ns: i64) {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let guest_ns = i64::try_from(now).unwrap() - offset_ns;
        self.send(&FromAgent::Reply { id, result: Ok(Response::Clock { guest_ns }) });
    }

    /// Answers the next call with `result`, and returns the call's request.
    fn answer(&mut self, result: Result<Response, Failure>) -> agent::Request {
        let agent::Call { id, request } = self.next_call();
        self.send(&FromAgent::Reply { id, result });
        request
    }

    /// Answers the call that creates a process, and returns the port of its standard output.
    fn answer_create(&mut self) -> u32 {
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

    fn send_exit(&mut self, exec: Option<&str>, status: ExitStatus) {
        let process = of_main(exec);
        self.send(&FromAgent::Event(Event::Exited { process, status }));
    }

    fn status(&mut self) -> Status {
        match self.connect().call(&Request::Status { container: "main".into() }, &[], Some(LONG)).unwrap() {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn exit_status(&self) -> u8 {
        self.exit_status.recv_timeout(LONG).unwrap()
    }

    fn is_running(&self) -> bool {
        self.exit_status.recv_timeout(Duration::from_millis(50)).is_err()
    }
}

impl Drop for TestSandbox {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        assert!(!panicked || std::thread::panicking(), "the event loop panicked");
    }
}

/// The read end of a process's output.
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
