//! The fuzzing target of control connections: what a client sends to the VMM, and what a compromised VMM sends to a client.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent::fuzz::frames;

use super::{Answer, Client, Connection, Reply, Request};

/// Sends frames of the input (see [`frames`]) to both ends.
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

fn to_vmm(data: &[u8]) {
    let (ours, mut theirs) = pair();
    let mut connection = Connection::new(ours);
    for bytes in frames(data) {
        if theirs.write_all(&bytes).is_err() {
            return;
        }
        while let Ok(Some(call)) = connection.next_call() {
            let count = match &call.request {
                Request::Create(container) => container.counts().iter().sum(),
                Request::Exec { stdio, .. } => stdio.count(),
                _ => 1,
            };
            // No request of the input passes a descriptor.
            assert_eq!(connection.take_fds(count).is_some(), count == 0);
            if connection.send(&Answer { id: call.id, result: Ok(Reply::Done) }).is_err() {
                return;
            }
        }
    }
}

fn to_client(data: &[u8]) {
    let (ours, mut theirs) = pair();
    let mut client = Client::from_stream(ours);
    for _ in 0..4 {
        client.send(&Request::Timeline, &[theirs.as_fd()]).expect("the socket takes some requests");
    }
    for bytes in frames(data) {
        if theirs.write_all(&bytes).is_err() {
            return;
        }
        while client.receive(Some(Duration::ZERO)).is_ok() {}
    }
}
