//! Tests of the connection with a simulated agent.

use std::io::{Read, Write};

use agent::ContainerRequest;

use super::*;

const HELLO: FromAgent =
    FromAgent::Hello(Hello { version: agent::VERSION, kernel: String::new(), started_ns: 1, ready_ns: 2 });

fn pair() -> (AgentConnection<u32>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (AgentConnection::new(ours), theirs)
}

fn send(agent: &mut UnixStream, message: &FromAgent) {
    frame::write(agent, message).unwrap();
}

fn start(connection: &mut AgentConnection<u32>, context: u32) {
    let request = Request::Container(ContainerRequest::Start { container: "c".into() });
    connection.call(request, "start container c".into(), context).unwrap();
}

#[test]
fn requests_are_not_sent_before_the_hello() {
    let (mut connection, mut agent) = pair();
    start(&mut connection, 7);
    connection.flush().unwrap();
    agent.set_nonblocking(true).unwrap();
    assert!(agent.read(&mut [0; 1]).is_err());
    agent.set_nonblocking(false).unwrap();
    send(&mut agent, &HELLO);
    assert!(matches!(connection.next_message().unwrap(), Some(AgentMessage::Hello(_))));
    connection.flush().unwrap();
    let call: Call = frame::read(&mut agent).unwrap().unwrap();
    send(&mut agent, &FromAgent::Reply { id: call.id, result: Ok(Response::Done) });
    assert!(matches!(
        connection.next_message().unwrap(),
        Some(AgentMessage::Reply { context: 7, result: Ok(Response::Done) })
    ));
    assert!(connection.next_message().unwrap().is_none());
}

#[test]
fn a_boot_timeout_and_a_call_timeout_are_different_errors() {
    let (mut connection, mut agent) = pair();
    start(&mut connection, 1);
    assert!(connection.take_expired(Instant::now()).unwrap().is_empty());
    let error = connection.take_expired(Instant::now() + BOOT_TIMEOUT).unwrap_err();
    assert_eq!(error.to_string(), "the agent did not answer within 30s (kernel booting)");
    send(&mut agent, &HELLO);
    connection.next_message().unwrap();
    let expired = connection.take_expired(Instant::now() + CALL_TIMEOUT).unwrap();
    assert_eq!(expired[0].0, 1);
    assert_eq!(expired[0].1.to_string(), "start container c: the guest agent did not answer within 30s");
    assert!(connection.deadline().is_none());
    send(&mut agent, &FromAgent::Reply { id: 1, result: Ok(Response::Done) });
    assert!(connection.next_message().unwrap().is_none(), "a reply after its deadline is dropped");
}

#[test]
fn protocol_violations_are_errors() {
    let reply = FromAgent::Reply { id: 5, result: Ok(Response::Done) };
    let old = FromAgent::Hello(Hello { version: 0, kernel: String::new(), started_ns: 0, ready_ns: 0 });
    for (messages, error) in [
        (vec![reply.clone()], "the agent broke the protocol: it did not greet first"),
        (vec![HELLO, HELLO], "the agent broke the protocol: it greeted twice"),
        (vec![HELLO, reply], "the agent broke the protocol: it answered what was not asked"),
        (vec![old], "the agent speaks protocol version 0, this VMM speaks 2"),
    ] {
        let (mut connection, mut agent) = pair();
        messages.iter().for_each(|message| send(&mut agent, message));
        let actual = loop {
            if let Err(error) = connection.next_message() {
                break error;
            }
        };
        assert_eq!(actual.to_string(), error);
    }
}

#[test]
fn invalid_and_oversized_frames_are_errors() {
    for bytes in [&[0xff_u8; 64][..], &[3, 0, 0, 0, 1, 2, 3]] {
        let (mut connection, mut agent) = pair();
        agent.write_all(bytes).unwrap();
        assert!(matches!(connection.next_message(), Err(AgentError::Frame(_))));
    }
    let (mut connection, agent) = pair();
    drop(agent);
    assert!(matches!(connection.next_message(), Err(AgentError::Closed)));
}

#[test]
fn one_byte_at_a_time_extends_no_deadline() {
    let (mut connection, mut agent) = pair();
    start(&mut connection, 1);
    for byte in frame::encode(&HELLO).unwrap() {
        assert!(connection.next_message().unwrap().is_none());
        assert!(matches!(connection.take_expired(Instant::now() + BOOT_TIMEOUT), Err(AgentError::BootTimeout)));
        agent.write_all(&[byte]).unwrap();
    }
    assert!(matches!(connection.next_message().unwrap(), Some(AgentMessage::Hello(_))));
    let deadline = connection.deadline();
    let reply = frame::encode(&FromAgent::Reply { id: 1, result: Ok(Response::Done) }).unwrap();
    for byte in &reply[..reply.len() - 1] {
        agent.write_all(&[*byte]).unwrap();
        assert!(connection.next_message().unwrap().is_none());
        assert_eq!(connection.deadline(), deadline);
    }
    assert_eq!(connection.take_expired(deadline.unwrap()).unwrap().len(), 1);
}

#[test]
fn no_more_than_a_frame_and_a_chunk_are_kept() {
    let (mut connection, mut agent) = pair();
    let header = frame::MAX_BODY.to_le_bytes();
    let flood = std::thread::spawn(move || {
        agent.write_all(&header).unwrap();
        // The write ends when the connection is closed.
        while agent.write_all(&[b' '; CHUNK]).is_ok() {}
    });
    let error = loop {
        match connection.next_message() {
            Ok(_) => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AgentError::Frame(_)), "{error}");
    let bound = frame::HEADER_LEN + usize::try_from(frame::MAX_BODY).unwrap() + CHUNK;
    assert!(connection.received.len() <= bound && connection.received.capacity() <= 4 * bound);
    drop(connection);
    flood.join().unwrap();
}

#[test]
fn an_exit_status_out_of_range_is_an_error() {
    let good = r#"{"event":{"exited":{"process":{"container":"c"},"status":{"exited":255}}}}"#;
    let status = r#"{"exited":255}"#;
    let bad = [
        r#"{"exited":256}"#,
        r#"{"exited":-1}"#,
        r#"{"exited":1e9}"#,
        r#"{"exited":"0"}"#,
        r#"{"exited":null}"#,
        r#"{"signaled":256}"#,
        r#"{"signaled":-9}"#,
        r#"{"dumped":1}"#,
        "null",
        "{}",
    ];
    for replacement in std::iter::once(status).chain(bad) {
        let (mut connection, mut agent) = pair();
        send(&mut agent, &HELLO);
        connection.next_message().unwrap();
        let body = good.replace(status, replacement);
        let header = u32::try_from(body.len()).unwrap().to_le_bytes();
        agent.write_all(&[&header[..], body.as_bytes()].concat()).unwrap();
        match connection.next_message() {
            Ok(Some(AgentMessage::Event(_))) => assert_eq!(replacement, status),
            Err(AgentError::Frame(_)) => assert_ne!(replacement, status),
            other => panic!("{replacement}: {other:?}"),
        }
    }
}

#[test]
fn text_from_the_guest_is_sanitized() {
    let (mut connection, mut agent) = pair();
    start(&mut connection, 1);
    send(&mut agent, &HELLO);
    let failure = Failure { kind: FailureKind::System, step: "\x1b[2Jfake\n".into(), cause: "x".repeat(100_000) };
    send(&mut agent, &FromAgent::Reply { id: 1, result: Err(failure) });
    connection.next_message().unwrap();
    let Some(AgentMessage::Reply { result: Err(failure), .. }) = connection.next_message().unwrap() else {
        panic!("no failure")
    };
    assert_eq!((failure.step.as_str(), failure.cause.len()), (" [2Jfake ", MAX_TEXT));
}

#[test]
fn queued_requests_are_bounded() {
    let (mut connection, _agent) = pair();
    let mut count = 0;
    let refused = loop {
        let request = Request::Container(ContainerRequest::Delete { container: "x".repeat(1 << 20) });
        match connection.call(request, "delete".into(), count) {
            Ok(()) => count += 1,
            Err((_, failure)) => break failure,
        }
    };
    assert_eq!((count, refused.cause.as_str()), (15, "too many requests wait for the guest"));
    assert_eq!(connection.take_pending().len(), 15);
}
