//! The fuzzing target of the agent's messages, which a hostile guest can send.

use std::collections::BTreeSet;

use agent::fuzz::frames;

use super::*;

/// Sends frames of the input (see [`frames`]) after some calls, and receives all messages until the connection fails.
pub(crate) fn agent_messages(data: &[u8]) {
    run(data);
}

/// Returns the kinds of the messages that were received.
fn run(data: &[u8]) -> BTreeSet<&'static str> {
    let mut kinds = BTreeSet::new();
    let (ours, theirs) = UnixStream::pair().expect("two descriptors");
    let mut connection = AgentConnection::new(ours);
    for context in 0..4_u32 {
        connection.call(Request::ReadClock, format!("step {context}"), context).expect("few bytes wait");
    }
    for bytes in frames(data) {
        // A connection that takes no more bytes at once would take them later.
        if socket::send(theirs.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_err() {
            break;
        }
        if receive_all(&mut connection, &mut kinds).is_err() {
            break;
        }
    }
    let later = Instant::now() + BOOT_TIMEOUT + CALL_TIMEOUT;
    if connection.is_ready {
        connection.take_expired(later).expect("the agent has booted");
        assert!(connection.take_pending().is_empty() && connection.deadline().is_none(), "a call has no end");
    }
    kinds
}

fn receive_all(connection: &mut AgentConnection<u32>, kinds: &mut BTreeSet<&'static str>) -> Result<(), AgentError> {
    while let Some(message) = connection.next_message()? {
        connection.flush()?;
        kinds.insert(match message {
            AgentMessage::Hello(hello) => {
                assert_printable(&hello.kernel);
                "hello"
            }
            AgentMessage::Reply { context, result } => {
                assert!(context < 4, "a context that no call had");
                match result {
                    Ok(_) => "success",
                    Err(failure) => {
                        [&failure.step, &failure.cause].into_iter().for_each(|text| assert_printable(text));
                        "failure"
                    }
                }
            }
            AgentMessage::Event(_) => "event",
        });
    }
    Ok(())
}

/// Text of the guest that reaches terminals and logs is short and has no control characters.
fn assert_printable(text: &str) {
    assert!(text.chars().count() <= MAX_TEXT && !text.contains(char::is_control), "{text:?}");
}

#[cfg(test)]
mod tests {
    use agent::fuzz::committed;

    use super::*;

    #[test]
    fn the_committed_session_has_every_kind_of_message() {
        let kinds = run(&committed("agent_messages", "session"));
        assert_eq!(kinds, ["event", "failure", "hello", "success"].into());
        assert_eq!(run(&committed("agent_messages", "replies")), ["hello", "success"].into());
        assert_eq!(run(&committed("agent_messages", "version")), [].into(), "the agent of another version");
    }
}
