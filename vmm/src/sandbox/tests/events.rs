//! What the guest tells without being asked.

use super::*;

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
