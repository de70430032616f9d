//! Events of the agent.

use agent::ContainerRequest;

use super::*;

#[test]
fn events_of_unknown_processes_have_no_effect() {
    let (mut sandbox, _output) = TestSandbox::running();
    for number in 0..10_000 {
        let process = ProcessId { container: format!("c{number}"), exec: None };
        sandbox.send(&FromAgent::Event(Event::Exited { process, status: ExitStatus::Exited(0) }));
    }
    sandbox.send_exit(Some("never"), ExitStatus::Exited(0));
    assert_eq!(sandbox.status(), Status::Running);
    assert!(sandbox.is_running());
}

#[test]
fn a_frozen_container_is_paused_until_it_is_thawed() {
    let (mut sandbox, _output) = TestSandbox::running();
    for (frozen, status) in [(true, Status::Paused), (false, Status::Running)] {
        let request = Request::Container(ContainerRequest::Freeze { container: "main".into(), frozen });
        let id = sandbox.client().send(&request, &[]).unwrap();
        match sandbox.answer(Ok(Response::Done)) {
            agent::Request::Container(agent::ContainerRequest::Freeze { container, frozen: asked }) => {
                assert_eq!((container.as_str(), asked), ("main", frozen));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(sandbox.client().receive(Some(LONG)).unwrap().id, id);
        assert_eq!(sandbox.status(), status);
    }
}

#[test]
fn each_oom_kill_is_reported_and_precedes_the_exit_status() {
    let (mut sandbox, _output) = TestSandbox::running();
    let mut client = sandbox.connect();
    let ask = |client: &mut Client, known| {
        client.send(&Request::AwaitOutOfMemory { container: "main".into(), known }, &[]).unwrap()
    };
    ask(&mut client, None);
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(0)));
    ask(&mut client, Some(0));
    sandbox.send(&FromAgent::Event(Event::OutOfMemory { container: "nobody".into() }));
    sandbox.send(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(1)));
    ask(&mut client, Some(1));
    TestSandbox::wait(&mut client, None);
    sandbox.send(&FromAgent::Event(Event::OutOfMemory { container: "main".into() }));
    sandbox.send_exit(None, ExitStatus::Signaled(9));
    assert_eq!(client.receive(Some(LONG)).unwrap().result, Ok(Reply::OutOfMemory(2)));
    assert_eq!(exited(&client.receive(Some(LONG)).unwrap()), ExitStatus::Signaled(9));
    let unknown = Request::AwaitOutOfMemory { container: "nobody".into(), known: None };
    let failed = client.call(&unknown, &[], Some(LONG));
    assert!(!matches!(failed, Ok(Reply::OutOfMemory(_))), "{failed:?}");
}

#[test]
fn statistics_of_the_agent_are_relayed() {
    let (mut sandbox, _output) = TestSandbox::running();
    let statistics = std::collections::BTreeMap::from([("pids.current".to_owned(), "3\n".to_owned())]);
    let id = sandbox
        .client()
        .send(&Request::Container(ContainerRequest::Statistics { container: "main".into() }), &[])
        .unwrap();
    sandbox.answer(Ok(Response::Statistics(statistics.clone())));
    let answer = sandbox.client().receive(Some(LONG)).unwrap();
    assert_eq!((answer.id, answer.result), (id, Ok(Reply::Statistics(statistics))));
}
