//! The fuzzing target of control connections: what a client sends to the VMM, and what a compromised VMM sends to a client.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use agent::fuzz::frames;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Answer, Client, Connection, Reply, Request};

/// Sends frames of the input (see [`frames`]) to both ends. A line that starts with `@` and a count passes as many descriptors to the VMM.
pub(crate) fn control(data: &[u8]) {
    to_vmm(data);
    to_client(data);
}

/// A pair of sockets of which the first never blocks a sender of the second.
fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("two descriptors");
    theirs.set_nonblocking(true).expect("a socket");
    (ours, theirs)
}

/// Returns the number of requests.
fn to_vmm(data: &[u8]) -> usize {
    let (ours, theirs) = pair();
    let (mut requests, mut held) = (0, 0);
    let mut connection = Connection::new(ours);
    for line in data.split(|byte| *byte == b'\n') {
        let (descriptors, line) = match line {
            [b'@', count, rest @ ..] => (usize::from(*count), rest),
            _ => (0, line),
        };
        for bytes in frames(line).filter(|bytes| !bytes.is_empty()) {
            if !send(&theirs, &bytes, descriptors) {
                return requests;
            }
            held += descriptors;
        }
        while let Some(call) = connection.next_call().transpose() {
            let Ok(call) = call else { return requests };
            requests += 1;
            let count = descriptors_of(&call.request);
            assert_eq!(connection.take_fds(count).map(|fds| fds.len()), (held >= count).then_some(count));
            held -= if held >= count { count } else { 0 };
            if connection.send(&Answer { id: call.id, result: Ok(Reply::Done) }).is_err() {
                return requests;
            }
        }
    }
    requests
}

/// The number of descriptors of a request. At least one, so that every kind of request takes some.
fn descriptors_of(request: &Request) -> usize {
    match request {
        Request::Create(container) => container.counts().iter().sum(),
        Request::Exec { stdio, .. } => stdio.count(),
        Request::Configure(config) => config.descriptors(),
        _ => 1,
    }
}

/// Sends bytes with descriptors. False if the socket does not take them all.
fn send(socket: &UnixStream, bytes: &[u8], descriptors: usize) -> bool {
    static NULL: OnceLock<File> = OnceLock::new();
    let null = NULL.get_or_init(|| File::open("/dev/null").expect("it is always there"));
    let descriptors = vec![null.as_raw_fd(); descriptors];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) == Ok(bytes.len())
}

/// Returns the number of answers.
fn to_client(data: &[u8]) -> usize {
    let (ours, mut theirs) = pair();
    let mut answers = 0;
    let mut client = Client::from_stream(ours);
    for _ in 0..8 {
        client.send(&Request::Timeline, &[theirs.as_fd()]).expect("the socket takes some requests");
    }
    for bytes in frames(data) {
        if theirs.write_all(&bytes).is_err() {
            return answers;
        }
        while client.receive(Some(Duration::ZERO)).is_ok() {
            answers += 1;
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use agent::fuzz::committed;

    use super::*;

    #[test]
    fn every_line_of_committed_sessions_is_a_request_or_an_answer() {
        let to_vmm = to_vmm as fn(&[u8]) -> usize;
        for (name, read) in [("requests", to_vmm), ("create", to_vmm), ("descriptors", to_vmm), ("answers", to_client)]
        {
            let data = committed("control", name);
            assert_eq!(read(&data), frames(&data).count(), "{name}");
        }
    }
}
