//! How processes, containers, guests and sandboxes end, and who is told.

use super::*;

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
fn the_host_counts_a_death_for_want_of_memory_before_the_end() {
    let (mut bench, _output) = Bench::running();
    let died = bench.directory.path().join("died");
    bench.say(&FromAgent::Event(Event::OutOfMemory { container: "nobody".into() }));
    bench.say(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    bench.ended(None, ExitStatus::Signaled(9));
    assert_eq!(bench.exit_status(), 137);
    assert_eq!(std::fs::read_to_string(died).unwrap(), format!("{}\n", crate::victim::ARGUMENT));
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
