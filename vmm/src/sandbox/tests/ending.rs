//! The ends of processes, containers, guests and sandboxes.

use agent::ContainerRequest;

use super::*;
use crate::helper::{Task, TaskResult};
use crate::machine::exit::VcpuError;

#[test]
fn the_sandbox_ends_with_the_main_process() {
    for (status, code) in [(ExitStatus::Exited(7), 7), (ExitStatus::Signaled(15), 143)] {
        let (mut sandbox, output) = TestSandbox::running();
        let mut other = sandbox.connect();
        let waits = [TestSandbox::wait(&mut other, None), TestSandbox::wait(&mut other, None)];
        sandbox.send_exit(None, status);
        for id in waits {
            let answer = other.receive(Some(LONG)).unwrap();
            assert_eq!((answer.id, exited(&answer)), (id, status));
        }
        assert_eq!(sandbox.exit_status(), code);
        assert!(output.ends(), "the descriptor is closed, although the guest never connected");
    }
}

#[test]
fn an_oom_kill_is_reported_to_the_host_before_the_sandbox_ends() {
    let (mut sandbox, _output) = TestSandbox::running();
    sandbox.send(&FromAgent::Event(Event::OutOfMemory { container: "nobody".into() }));
    sandbox.send(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    sandbox.send_exit(None, ExitStatus::Signaled(9));
    assert_eq!(helper::receive_task(sandbox.helper.as_fd()).unwrap(), Some(Task::CountOomKill));
    assert!(sandbox.exit_status.recv_timeout(Duration::from_millis(200)).is_err(), "it waits for the host");
    let result = TaskResult { task: Task::CountOomKill, is_done: true };
    helper::send_result(sandbox.helper.as_fd(), result).unwrap();
    assert_eq!(sandbox.exit_status(), 137);
}

#[test]
fn output_is_written_before_the_exit_status_is_reported() {
    let mut sandbox = TestSandbox::new();
    sandbox.send_hello();
    let (_, _output) = sandbox.create("main");
    let port = sandbox.answer_create();
    sandbox.client().receive(Some(LONG)).unwrap();
    let flow: Arc<Flow> = sandbox.ports.take(port).unwrap().flow;
    flow.set_unwritten(100);
    let mut client = sandbox.client.take().unwrap();
    TestSandbox::wait(&mut client, None);
    sandbox.send_exit(None, ExitStatus::Exited(0));
    assert!(matches!(client.receive(Some(Duration::from_millis(50))), Err(ClientError::Timeout(_))));
    assert_eq!(
        sandbox.status(),
        Status::Stopped(ExitStatus::Exited(0)),
        "the status is stopped before the output is written"
    );
    // The guest may have ended by now.
    sandbox.machine.report(MachineExit::Reset);
    assert!(sandbox.is_running());
    flow.set_unwritten(0);
    assert_eq!(exited(&client.receive(Some(LONG)).unwrap()), ExitStatus::Exited(0));
    assert_eq!(sandbox.exit_status(), 0);
}

#[test]
fn the_end_of_the_guest_fails_all_waiting_requests() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    TestSandbox::wait(&mut client, None);
    TestSandbox::exec(&mut client, "e");
    sandbox.next_call();
    sandbox.machine.report(MachineExit::Panic("Attempted to kill init!".into()));
    for _ in 0..2 {
        let failure = failed(client.receive(Some(LONG)));
        assert_eq!(failure.kind, FailureKind::GuestDied);
        assert_eq!(failure.to_string(), "run the guest: the guest's kernel panicked: Attempted to kill init!");
    }
    assert_eq!(sandbox.exit_status(), GUEST_DIED);
    TestSandbox::wait(&mut client, None);
    assert_eq!(failed(client.receive(Some(LONG))).kind, FailureKind::GuestDied);
}

#[test]
fn an_error_of_kvm_ends_the_sandbox_with_its_reason() {
    let internal = VcpuError::Internal { kind: "two exceptions at once", suberror: 2, rip: 0xfff0, data: vec![7] };
    for (source, words) in [
        (VcpuError::Run(kvm_ioctls::Error::new(libc::EFAULT)), "KVM cannot run it: Bad address"),
        (VcpuError::FailEntry { reason: 0x8000_0021, cpu: 1 }, "refused its state (reason 0x80000021, on CPU 1)"),
        (internal, "internal error: two exceptions at once (suberror 2, at 0xfff0, data [7])"),
        (VcpuError::SystemEvent(9), "system event 9"),
        (VcpuError::Unknown("Hlt".to_owned()), "does not handle: Hlt"),
    ] {
        let (sandbox, _output) = TestSandbox::running();
        let mut client = sandbox.connect();
        TestSandbox::wait(&mut client, None);
        sandbox.machine.report(MachineExit::Vcpu { id: 3, source });
        let failure = failed(client.receive(Some(LONG)));
        assert_eq!(failure.kind, FailureKind::GuestDied);
        let text = failure.to_string();
        assert!(text.starts_with("run the guest: vCPU 3 stopped: ") && text.contains(words), "{text}");
        assert_eq!(sandbox.exit_status(), GUEST_DIED);
    }
}

#[test]
fn an_agent_that_violates_the_protocol_ends_its_sandbox() {
    for bytes in [&[0xff_u8; 64][..], &[2, 0, 0, 0, b'{', b'}'], b""] {
        let (mut sandbox, _output) = TestSandbox::running();
        let mut client = sandbox.connect();
        TestSandbox::wait(&mut client, None);
        match bytes {
            [] => sandbox.agent.shutdown(std::net::Shutdown::Both).unwrap(),
            garbage => std::io::Write::write_all(&mut sandbox.agent, garbage).unwrap(),
        }
        let failure = failed(client.receive(Some(LONG)));
        assert_eq!((failure.kind, failure.step.as_str()), (FailureKind::GuestDied, "talk to the guest"));
        assert_eq!(sandbox.exit_status(), GUEST_DIED);
    }
}

#[test]
fn the_sandbox_ends_with_its_first_client_until_the_container_is_created() {
    let mut sandbox = TestSandbox::new();
    sandbox.client = None;
    assert_eq!(sandbox.exit_status(), GUEST_DIED);
    let (mut sandbox, _output) = TestSandbox::running();
    sandbox.client = None;
    assert!(sandbox.is_running());
    assert_eq!(sandbox.status(), Status::Running);
}

#[test]
fn deleting_a_container_fails_its_waiters() {
    let (mut sandbox, _output) = TestSandbox::running();
    let (id, _second) = sandbox.create("second");
    sandbox.answer_create();
    assert_eq!(sandbox.client().receive(Some(LONG)).unwrap().id, id);
    let wait = Request::Wait { process: ProcessId { container: "second".into(), exec: None } };
    let mut client = sandbox.connect();
    client.send(&wait, &[]).unwrap();
    let delete = sandbox
        .client()
        .send(&Request::Container(ContainerRequest::Delete { container: "second".into() }), &[])
        .unwrap();
    sandbox.answer(Ok(Response::Done));
    assert_eq!(sandbox.client().receive(Some(LONG)).unwrap().id, delete);
    assert_eq!(failed(client.receive(Some(LONG))).cause, "the container was deleted");
    assert!(sandbox.is_running());
}

#[test]
fn executed_processes_of_the_main_container_are_reported_before_the_sandbox_ends() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    TestSandbox::exec(&mut client, "e");
    let wait = TestSandbox::wait(&mut client, Some("e"));
    sandbox.answer_create();
    client.receive(Some(LONG)).unwrap();
    sandbox.send_exit(None, ExitStatus::Exited(0));
    assert!(sandbox.is_running(), "the executed process has not ended yet");
    sandbox.send_exit(Some("e"), ExitStatus::Signaled(9));
    let answer = client.receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, exited(&answer)), (wait, ExitStatus::Signaled(9)));
    assert_eq!(sandbox.exit_status(), 0);
}
